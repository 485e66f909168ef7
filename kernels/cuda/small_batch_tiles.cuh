// What a warp of a product with a small batch reads: weights on their way from global memory, and
// activations in registers.
#pragma once

#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda::batch {

constexpr int kMostPairs = 2;  // of a warp

// A pair: what a warp takes of 16 rows at a time, two tiles of 8 rows below each other; of a gated
// product one of gate rows and one of up rows. Of bfloat16 weights a lane copies 16 bytes of two
// rows of a tile, lane / 8 and the fourth behind it, so that every row is a line of memory; in
// shared memory odd rows have the halves of their line swapped, so that the rows which are read
// together lie in different banks.
template <DType kType>
struct PairOf : SmallTileOf<kType> {
  static constexpr int kTileBytes = SmallTileOf<kType>::kBytes;
  static constexpr int kParts = 2;  // a lane's places in the tiles
};
template <>
struct PairOf<DType::kBF16> {
  static constexpr int kRows = SmallTile::kRows, kColumns = 64, kGroups = 2;
  static constexpr int kTileBytes = kRows * kColumns * 2;
  static constexpr int kParts = 4;
};
constexpr int kPairRows = 2 * SmallTile::kRows;
template <DType kType>
constexpr int kPairBytes = 2 * PairOf<kType>::kTileBytes;

// Pairs of a warp under way, a multiple of how many it has. More tokens leave less room.
template <DType kType, int kTiles>
constexpr int kSlots = kType == DType::kQ8 || (kType == DType::kBF16 && kTiles == 2) ? 4 : 6;

// Bytes of a weight to what this lane copies first of each pair of its warp.
template <DType kType>
struct Places {
  uint32_t at[kMostPairs][PairOf<kType>::kParts];
};

// The pairs of a warp, those of the same columns one behind the other, on their way through a ring
// of kSlots in shared memory. A place in the ring always takes the same pair.
template <DType kType, int kSlots>
class PairStream {
 public:
  __device__ PairStream(unsigned char* ring, const unsigned char* weight,
                        const Places<kType>& places, int pairs, int columns)
      : ring_(ring),
        weight_(weight),
        places_(places),
        pairs_(pairs),
        turns_(pairs > 0 ? kSlots / pairs : 0),
        left_(columns) {
    for (int turn = 0; turn < turns_; ++turn) {
#pragma unroll
      for (int pair = 0; pair < kMostPairs; ++pair) {
        if (pair < pairs) ask(pair);
      }
      next();
    }
    turn_ = 0;
  }

  // Waits for the next n pairs; returns the first of them, behind which the others lie.
  template <int n>
  __device__ __forceinline__ const unsigned char* wait() const {
    copy_wait<kSlots - n>();
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
  // From a tile of the weight to the one beside it.
  static constexpr int kStep =
      kType == DType::kBF16 ? PairOf<kType>::kColumns * static_cast<int>(sizeof(__nv_bfloat16))
                            : PairOf<kType>::kTileBytes;

  __device__ __forceinline__ void ask(int pair) {
    if (left_ > 0) {
      unsigned char* to = ring_ + (turn_ * pairs_ + pair) * kPairBytes<kType>;
      const auto from = [&](int part) { return weight_ + places_.at[pair][part]; };
      const int lane = threadIdx.x % 32;
      if constexpr (kType == DType::kBF16) {
        to += lane / 8 * 128 + (lane % 8 ^ lane / 8 % 2 * 4) * 16;
#pragma unroll
        for (int part = 0; part < PairOf<kType>::kParts; ++part) {
          copy_async(to + part * 4 * 128, from(part));
        }
      } else {
        copy_pair<kType>(to + lane * 16, from(0), from(1));
      }
    }
    copy_commit();
  }
  __device__ __forceinline__ void next() {
    --left_;
    weight_ += kStep;
    if (++turn_ == turns_) turn_ = 0;
  }

  unsigned char* ring_;
  const unsigned char* weight_;  // of the columns to be asked for
  Places<kType> places_;
  int pairs_, turns_;  // so many times the pairs are in the ring
  int turn_ = 0, left_;
};

// Activations of a group in shared memory: `x[tile]` is where a lane 4 n + j finds columns 8 j to
// 8 j + 7 of token n of the tile.
template <int kTiles>
__device__ __forceinline__ void load_columns(const __nv_bfloat16* const (&x)[kTiles], int group,
                                             uint4 (&columns)[kTiles]) {
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    columns[tile] = *reinterpret_cast<const uint4*>(x[tile] + group * QuantizedRow::kGroup);
  }
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
    float d[kTiles][4] = {};
#pragma unroll
    for (int group = 0; group < SmallTile::kGroups; ++group) {
      const uint32_t ones = g == group ? kOnes : 0;
      uint4 columns[kTiles];
      load_columns(x, group, columns);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        add_group(make_uint4(ones, ones, ones, ones), {}, columns[tile], d[tile]);
      }
    }
    if (g >= SmallTile::kGroups) return;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      float* to = at + (column * SmallTile::kGroups + g) * kPitch + tile * 8 + 2 * j;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        to[i] = tf32_part(d[tile][i]);
        to[to_low + i] = tf32_part(d[tile][i] - to[i]);
      }
    }
  }
};

// sums [pair][token tile] += weights times activations for so many pairs of tiles; pairs side by
// side, since what is done with one of them is a chain of instructions that wait for each other.
// `group_sums` is this lane's: token n, group j.
template <DType kType, int kTiles, int kPairs>
__device__ __forceinline__ void add_small(const unsigned char* pairs,
                                          const __nv_bfloat16* const (&x)[kTiles],
                                          const float* group_sums, int to_low,
                                          float (&sums)[kMostPairs][kTiles][4]) {
  using Tile = SmallTileOf<kType>;
  const int lane = threadIdx.x % 32;
  SmallIntegers<kType> u[kPairs], l[kPairs];
#pragma unroll
  for (int group = 0; group < Tile::kGroups; ++group) {
    uint4 columns[kTiles];
    load_columns(x, group, columns);
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
      const uint4 above = columns_of(u[p], group), below = columns_of(l[p], group);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        float d[4] = {0, 0, 0, 0};
        add_group(above, below, columns[tile], d);
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

// The same of bfloat16 weights.
template <int kTiles, int kPairs>
__device__ __forceinline__ void add_dense(const unsigned char* pairs,
                                          const __nv_bfloat16* const (&x)[kTiles],
                                          float (&sums)[kMostPairs][kTiles][4]) {
  using Pair = PairOf<DType::kBF16>;
  const int g = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
#pragma unroll
  for (int group = 0; group < Pair::kGroups; ++group) {
    uint4 columns[kTiles];
    load_columns(x, group, columns);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const auto* upper = reinterpret_cast<const uint4*>(pairs + p * kPairBytes<DType::kBF16>) +
                          g * 8 + ((group * 4 + j) ^ (g % 2 * 4));
      const uint4 above = upper[0], below = upper[Pair::kTileBytes / 16];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        add_group(above, below, columns[tile], sums[p][tile]);
      }
    }
  }
}

// sums [token tile] += weights times activations for 16 rows and 128 columns of a bfloat16 matrix
// in global memory. `upper` and `lower` are this lane's rows at its first column, of which and of
// those behind it there are so many.
template <int kTiles>
__device__ __forceinline__ void add_apart(const __nv_bfloat16* upper, const __nv_bfloat16* lower,
                                          int there, const __nv_bfloat16* const (&x)[kTiles],
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
    uint4 columns[kTiles];
    load_columns(x, group, columns);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      add_group(u[group], l[group], columns[tile], sums[tile]);
    }
  }
}

}  // namespace gsa::cuda::batch
