// What a warp of a product of small weights with many tokens reads: weights on their way from
// global memory, and activations in registers.
#pragma once

#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda::batch {

// Weights of 16 rows, of two tiles: of a gated product one of gate rows and one of up rows.
constexpr int kPairRows = 2 * SmallTile::kRows;

template <DType kType>
constexpr int kPairBytes = 2 * SmallTileOf<kType>::kBytes;

constexpr int kMostPairs = 2;  // of a warp
// Pairs of a warp under way, a multiple of how many it has.
template <DType kType>
constexpr int kSlots = kType == DType::kQ8 ? 4 : 6;

// The pairs of a warp, those of the same columns one behind the other, on their way through a ring
// of its own in shared memory. A place in the ring always takes the same pair.
template <DType kType>
class PairStream {
 public:
  // Bytes of `weight` to the first pair's upper and lower tile of the first columns, and from pair
  // to pair. The lower tile of pair number `odd` is the upper one.
  struct Place {
    uint32_t upper, lower, next;
    int odd;
  };

  __device__ PairStream(unsigned char* ring, const unsigned char* weight, const Place& place,
                        int pairs, int columns)
      : ring_(ring),
        to_(ring + threadIdx.x % 32 * 16),
        weight_(weight),
        next_(place.next),
        upper_(place.upper + threadIdx.x % 32 * 16),
        lower_(place.lower + threadIdx.x % 32 * 16),
        back_(place.lower - place.upper),
        odd_(place.odd),
        pairs_(pairs),
        turns_(pairs > 0 ? kSlots<kType> / pairs : 0),
        left_(columns) {
    for (int turn = 0; turn < turns_; ++turn) {
      for (int pair = 0; pair < pairs; ++pair) ask(pair);
      next();
    }
    turn_ = 0;
  }

  // Waits for the next n pairs; returns the first of them, behind which the others lie.
  template <int n>
  __device__ __forceinline__ const unsigned char* wait() const {
    copy_wait<kSlots<kType> - n>();
    __syncwarp();
    return ring_ + turn_ * pairs_ * kPairBytes<kType>;
  }
  // Those pairs have been used: asks for those that take their places.
  template <int n>
  __device__ __forceinline__ void refill() {
    __syncwarp();
#pragma unroll
    for (int pair = 0; pair < n; ++pair) ask(pair);
    next();
  }

 private:
  static constexpr int kTileBytes = SmallTileOf<kType>::kBytes;

  __device__ __forceinline__ void ask(int pair) {
    if (left_ > 0) {
      unsigned char* to = to_ + (turn_ * pairs_ + pair) * kPairBytes<kType>;
      const uint32_t upper = upper_ + pair * next_;
      const uint32_t lower = lower_ + pair * next_ - (pair == odd_ ? back_ : 0);
      copy_pair<kType>(to, weight_ + upper, weight_ + lower);
    }
    copy_commit();
  }
  __device__ __forceinline__ void next() {
    --left_;
    upper_ += kTileBytes;
    lower_ += kTileBytes;
    if (++turn_ == turns_) turn_ = 0;
  }

  const unsigned char* ring_;
  unsigned char* to_;  // this lane's first vector
  const unsigned char* weight_;
  uint32_t next_, upper_, lower_, back_;  // of the columns to be asked for
  int odd_, pairs_, turns_;               // so many times the pairs are in the ring
  int turn_ = 0, left_;
};

// Activations of this lane in shared memory: `x[tile]` is where a lane 4 n + j finds columns 8 j to
// 8 j + 7 of token n of the tile.
template <int kTiles>
__device__ __forceinline__ uint4 load_columns(const __nv_bfloat16* const (&x)[kTiles], int tile,
                                              int group) {
  return *reinterpret_cast<const uint4*>(x[tile] + group * QuantizedRow::kGroup);
}

// Of q4: the sums of the activations of each group in shared memory, as two halves of TF32, [high
// and low][group][token].
template <int kTiles>
struct GroupSums {
  static constexpr int kPitch = kTiles % 2 == 0 ? kTiles * 8 + 8 : kTiles * 8;  // apart in banks

  float* at;
  int to_low;

  __host__ __device__ static size_t bytes(int groups) {
    return sizeof(float) * 2 * groups * kPitch;
  }

  // Those of a column of tiles, whose activations begin at x. Sums are products with ones: row g of
  // the weights has them in the columns of group g.
  __device__ __forceinline__ void compute(const __nv_bfloat16* const (&x)[kTiles],
                                          int column) const {
    constexpr uint32_t kOnes = 0x3f803f80;
    const int g = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float d[4] = {0, 0, 0, 0};
#pragma unroll
      for (int group = 0; group < SmallTile::kGroups; ++group) {
        const uint32_t ones = g == group ? kOnes : 0;
        const uint4 weights{ones, 0, ones, 0}, v = load_columns(x, tile, group);
        mma(weights, v.x, v.y, d);
        mma(weights, v.z, v.w, d);
      }
      if (g >= SmallTile::kGroups) continue;
      float* to = at + (column * SmallTile::kGroups + g) * kPitch + tile * 8 + 2 * j;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to[i] = tf32_part(d[i]);
        to[to_low + i] = tf32_part(d[i] - to[i]);
      }
    }
  }
};

// sums [pair][token tile] += weights times activations for so many pairs of tiles, as add_tile;
// pairs side by side, since what is done with one of them is a chain of instructions that wait for
// each other. `group_sums` is this lane's: token n, group j.
template <DType kType, int kTiles, int kPairs>
__device__ __forceinline__ void add_pairs(const unsigned char* pairs,
                                          const __nv_bfloat16* const (&x)[kTiles],
                                          const float* group_sums, int to_low,
                                          float (&sums)[kMostPairs][kTiles][4]) {
  using Tile = SmallTileOf<kType>;
  const int lane = threadIdx.x % 32;
  SmallIntegers<kType> u[kPairs], l[kPairs];
#pragma unroll
  for (int group = 0; group < Tile::kGroups; ++group) {
    uint4 columns[kTiles];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      columns[tile] = load_columns(x, tile, group);
    }
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const unsigned char *upper = pairs + p * kPairBytes<kType>, *lower = upper + Tile::kBytes;
      u[p].load(upper, lane, group);
      l[p].load(lower, lane, group);
      const auto scale = [&](const unsigned char* tile) {
        const auto* halves = reinterpret_cast<const __half*>(tile + Tile::kScales);
        return __half2float(halves[lane / 4 * Tile::kGroups + group]);
      };
      const float upper_scale = scale(upper), lower_scale = scale(lower);
      const uint4 front{u[p].pairs(group, 0), l[p].pairs(group, 0), u[p].pairs(group, 1),
                        l[p].pairs(group, 1)};
      const uint4 back{u[p].pairs(group, 2), l[p].pairs(group, 2), u[p].pairs(group, 3),
                       l[p].pairs(group, 3)};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float d[4] = {0, 0, 0, 0};
        mma(front, columns[tile].x, columns[tile].y, d);
        mma(back, columns[tile].z, columns[tile].w, d);
        sums[p][tile][0] += upper_scale * d[0];
        sums[p][tile][1] += upper_scale * d[1];
        sums[p][tile][2] += lower_scale * d[2];
        sums[p][tile][3] += lower_scale * d[3];
      }
    }
  }
  if constexpr (kType == DType::kQ4) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const unsigned char *upper = pairs + p * kPairBytes<kType>, *lower = upper + Tile::kBytes;
      const float a[4] = {half_of_lane(upper + Tile::kMinima), half_of_lane(lower + Tile::kMinima),
                          half_of_lane(upper + Tile::kScales), half_of_lane(lower + Tile::kScales)};
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float sum = group_sums[i * to_low + tile * 8];
          multiply_tf32(a, sum, -SmallIntegers<kType>::kOffset * sum, sums[p][tile]);
        }
      }
    }
  }
}

// sums [token tile] += weights times activations for 16 rows and 128 columns of a bfloat16 matrix,
// as add_pairs. `upper` and `lower` are this lane's rows at its first column, of which and of those
// behind it there are so many.
template <int kTiles>
__device__ __forceinline__ void add_dense(const __nv_bfloat16* upper, const __nv_bfloat16* lower,
                                          int there, const __nv_bfloat16* const (&token)[kTiles],
                                          float (&sums)[kTiles][4]) {
  uint4 u[SmallTile::kGroups], l[SmallTile::kGroups];
#pragma unroll
  for (int group = 0; group < SmallTile::kGroups; ++group) {
    const int at = group * QuantizedRow::kGroup;
    u[group] = l[group] = make_uint4(0, 0, 0, 0);
    if (at >= there) continue;
    u[group] = __ldg(reinterpret_cast<const uint4*>(upper + at));
    l[group] = __ldg(reinterpret_cast<const uint4*>(lower + at));
  }
#pragma unroll
  for (int group = 0; group < SmallTile::kGroups; ++group) {
    const uint4 first{u[group].x, l[group].x, u[group].y, l[group].y};
    const uint4 second{u[group].z, l[group].z, u[group].w, l[group].w};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 x = load_columns(token, tile, group);
      mma(first, x.x, x.y, sums[tile]);
      mma(second, x.z, x.w, sums[tile]);
    }
  }
}

}  // namespace gsa::cuda::batch
