// What small_mat_vec's kernel works on: who has which part of it, and how weights and activations
// come into shared memory.
#pragma once

#include <type_traits>

#include "kernels/cuda/matvec_sums.cuh"
#include "kernels/cuda/small_digits.cuh"
#include "kernels/cuda/small_halves.cuh"

namespace gsa::cuda::few {

// A block has units of 16 rows, the rows of two tiles. Its warps are groups of `slices`: a group
// takes every groups-th unit, and a warp of it a slice of the columns of each of them; the warps of
// a group add up their sums at the end. A warp copies pairs of tiles into a ring of its own in
// shared memory ahead of their use: warps need not wait for each other, and the copies are under
// way before the activations are known. There is a block for each multiprocessor, of as many units
// as that makes: what comes before and after the products is done once, and has more instructions
// than the products of a unit.
static_assert(SmallTile::kRows == kTileRows);

struct Args {
  const float* x;
  const float* norm_weight;
  const unsigned char* weight;
  float* y;
  int tokens, rows, cols, y_stride;
  int blocks;          // of this weight; those behind them have the rows apart
  int across;          // tiles of a row
  int unit_bytes;      // of the weight, from a unit to the next
  int to_lower;        // from the first of its two rows of tiles to the other
  int down;            // rows of tiles
  int all_units;       // of 16 rows
  int units;           // of a block
  int groups, slices;  // of a block; their product is its number of warps
  int inverse_slices;  // 2^16 / slices, rounded up
  int slice_tiles;     // of the columns: the first `longer` slices have one more
  int longer;
  int panel;  // tiles of each slice whose activations stand in shared memory at a time
  float eps, inverse_cols;
  bool normalize, gated, accumulate;
};

// Places of a ring, each of a pair of tiles. To ask for more in advance delays the activations, of
// which four tokens have more.
template <DType kType, int kTokens>
constexpr int kDepth = (kType == DType::kQ4 ? 5 : 4) - (kTokens == 4);

// The part of the work that a warp has.
struct Part {
  int group, slice;
  int first, tiles;  // of a row of tiles
  int unit, units;   // of the matrix: the block's first one, and how many it has
  int odd;           // of these the one without a lower row of tiles, if any

  __device__ explicit Part(const Args& a) {
    const int warp = threadIdx.x / 32;
    group = warp * a.inverse_slices >> 16;
    slice = warp - group * a.slices;
    first = slice * a.slice_tiles + min(slice, a.longer);
    tiles = a.slice_tiles + (slice < a.longer);
    unit = blockIdx.x * a.units;
    units = min(a.units, a.all_units - unit);
    odd = a.down % 2 == 1 ? a.down / 2 - unit : -1;  // its lower tiles repeat the upper ones
  }
};

// A warp's weights on their way through its ring: of each panel, those of one unit after the other.
template <DType kType, int kTokens>
class TileStream {
 public:
  static constexpr int kTileBytes = SmallTileOf<kType>::kBytes;
  static constexpr int kRing = kDepth<kType, kTokens> * 2 * kTileBytes;

  __device__ TileStream(const Args& a, const Part& part, unsigned char* shared)
      : a_(a),
        part_(part),
        first_(a.weight + int64_t{part.unit} * a.unit_bytes + part.first * kTileBytes +
               threadIdx.x % 32 * 16),
        unit_(part.group - a.groups),
        at_(shared + threadIdx.x / 32 * kRing) {
#pragma unroll 1
    for (int i = 0; i < kDepth<kType, kTokens>; ++i) refill();
  }

  // Waits for the next place.
  __device__ __forceinline__ const unsigned char* wait() const {
    copy_wait<kDepth<kType, kTokens> - 1>();
    __syncwarp();
    return at_ + place_;
  }
  // The place has been used: it is filled again, and the next one is its turn.
  __device__ __forceinline__ void refill() {
    if (left_ == 0) find_next();
    if (left_ > 0) {
      copy_pair<kType>(at_ + place_ + threadIdx.x % 32 * 16, from_, from_ + to_lower_);
      from_ += kTileBytes;
      --left_;
    }
    copy_commit();
    place_ += 2 * kTileBytes;
    if (place_ == kRing) place_ = 0;
  }

 private:
  // The next unit, or the first one of the next panel, or none.
  __device__ __forceinline__ void find_next() {
    unit_ += a_.groups;
    if (unit_ >= part_.units) {
      if (panel_ + a_.panel >= part_.tiles || part_.group >= part_.units) return;
      panel_ += a_.panel;
      unit_ = part_.group;
    }
    left_ = min(a_.panel, part_.tiles - panel_);
    from_ = first_ + (int64_t{unit_} * a_.unit_bytes + panel_ * kTileBytes);
    to_lower_ = unit_ == part_.odd ? 0 : a_.to_lower;
  }

  const Args& a_;
  const Part& part_;
  const unsigned char* first_;  // the slice of the block's first unit; this lane's first vector
  const unsigned char* from_;   // what is to be asked for next
  int to_lower_;                // from there to the same tile of the lower row
  int unit_, panel_ = 0, left_ = 0;  // of these the pairs not yet asked for
  unsigned char* at_;
  int place_ = 0;
};

// Activations of a panel in shared memory, those of the slices one behind the other.
template <DType kType, int kTokens>
using Panel =
    std::conditional_t<as_digits(kType, kTokens), DigitsPanel<kType, kTokens>, HalvesPanel<kType>>;

// Loads panel `p` of all tokens times the norm's weight, a slice by the warps that take it, and
// adds up the squares of the plain values.
template <DType kType, int kTokens>
__device__ __forceinline__ void load_panel(const Args& a, const Part& part, int p,
                                           const Panel<kType, kTokens>& panel,
                                           float (&squares)[kTokens]) {
  constexpr int kAtOnce = kTokens == 1 ? 7 : 4 / kTokens;  // tiles asked for before one is used
  const int begin = p * a.panel, end = min(begin + a.panel, part.tiles), lane = threadIdx.x % 32;
  for (int first = begin + part.group; first < end; first += kAtOnce * a.groups) {
    float4 w[kAtOnce], x[kAtOnce][kTokens];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int tile = first + i * a.groups;
      const int column = (part.first + tile) * SmallTile::kColumns + lane * 4;
      const bool there = tile < end && column < a.cols;
      w[i] = make_float4(1, 1, 1, 1);
      if (a.norm_weight != nullptr && there) {
        w[i] = __ldg(reinterpret_cast<const float4*>(a.norm_weight + column));
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        x[i][t] = make_float4(0, 0, 0, 0);
        if (there && t < a.tokens) {
          x[i][t] = *reinterpret_cast<const float4*>(a.x + t * a.cols + column);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int tile = first + i * a.groups;
      if (tile >= end) break;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float4& v = x[i][t];
        squares[t] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        panel.keep(t, part.slice * a.panel + tile - begin, times(v, w[i]));
      }
    }
  }
}

}  // namespace gsa::cuda::few
