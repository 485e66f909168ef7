// The activations of products with small weights, on their way into shared memory.
#pragma once

#include "kernels/cuda/halves.cuh"
#include "kernels/cuda/matvec_sums.cuh"
#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda::small {

// What the kernel works on.
struct Args {
  const float* x;
  const float* norm_weight;
  const unsigned char* weight;
  float* y;
  int tokens, rows, cols, y_stride;
  int blocks;  // of this weight; those behind them have the rows apart
  int across;  // tiles of a row
  int down;    // rows of tiles
  int groups;  // of rows in a block; the other factor of its warps is the number of slices
  int slices;  // of the columns
  int depth;   // of a warp's ring
  int panel;   // tiles of each slice whose activations stand in shared memory at a time
  bool whole;  // the panel is all columns
  float eps;
  bool normalize, gated, accumulate;
};

__host__ __device__ inline int slice_begin(const Args& a, int slice) {
  return a.across * slice / a.slices;  // in tiles
}

__host__ __device__ inline int panel_columns(const Args& a) {
  return (a.whole ? a.across : a.slices * a.panel) * SmallTile::kColumns;
}

// Activations of a panel of columns in shared memory: bfloat16 halves [high and low][tokens], whose
// sum is the value, and for q4 the sums of all groups as two halves of TF32. The pitches leave rows
// that are read together in different banks.
template <DType kType>
struct Panel {
  static constexpr bool kSums = kType == DType::kQ4;

  __nv_bfloat16* x;
  float* sums;
  int pitch, sums_pitch;

  __device__ Panel(unsigned char* memory, int tokens, int columns)
      : x(reinterpret_cast<__nv_bfloat16*>(memory)),
        sums(nullptr),
        pitch(pitch_of(columns)),
        sums_pitch(sums_pitch_of(columns)) {
    sums = reinterpret_cast<float*>(x + 2 * tokens * pitch);
  }
  static size_t bytes(int tokens, int columns) {
    const size_t row = sizeof(__nv_bfloat16) * pitch_of(columns);
    return 2 * tokens * (row + (kSums ? sizeof(float) * sums_pitch_of(columns) : 0));
  }

 private:
  __host__ __device__ static constexpr int pitch_of(int columns) { return columns + 32; }
  __host__ __device__ static constexpr int sums_pitch_of(int columns) { return columns / 32 + 4; }
};

// Column c of panel p as a column of the matrix, or a negative number where its slice ends before.
__device__ __forceinline__ int column_of(const Args& a, int p, int c) {
  if (a.whole) return c;
  const int width = a.panel * SmallTile::kColumns, slice = c / width;
  const int column =
      (slice_begin(a, slice) + p * a.panel) * SmallTile::kColumns + c - slice * width;
  return column < slice_begin(a, slice + 1) * SmallTile::kColumns ? column : -1;
}

// Loads panel `p` of all tokens times the norm's weight, and adds up the squares of the plain
// values: squares[t * kMostWarps + w] is the sum of warp w over all panels.
template <DType kType, int kTokens>
__device__ __forceinline__ void load_panel(const Args& a, int p, const Panel<kType>& panel,
                                           float* squares) {
  constexpr int kAtOnce = kTokens < 8 ? kTokens : 8;  // asked for before the first is used
  const int columns = panel_columns(a);
  const int to_low = a.tokens * panel.pitch, sums_to_low = a.tokens * panel.sums_pitch;
  float total[kTokens] = {};
  for (int c = threadIdx.x * 4; c < columns; c += blockDim.x * 4) {
    const int column = column_of(a, p, c);  // of one slice and tile for the whole warp
    if (column < 0) continue;
    const bool there = column < a.cols;
    float4 w = make_float4(1, 1, 1, 1);
    if (a.norm_weight != nullptr && there) {
      w = __ldg(reinterpret_cast<const float4*>(a.norm_weight + column));
    }
    const float* from = a.x + column;
    __nv_bfloat16* to = panel.x + c;
    float* sum_to = panel.sums + c / 32;
#pragma unroll
    for (int first = 0; first < kTokens; first += kAtOnce) {
      float4 x[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, from += a.cols) {
        x[i] = make_float4(0, 0, 0, 0);
        if (first + i < a.tokens && there) x[i] = *reinterpret_cast<const float4*>(from);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i, to += panel.pitch, sum_to += panel.sums_pitch) {
        const int t = first + i;
        if (t >= a.tokens) break;
        total[t] += x[i].x * x[i].x + x[i].y * x[i].y + x[i].z * x[i].z + x[i].w * x[i].w;
        constexpr bool kSums = Panel<kType>::kSums;
        float sum = store_halves<kSums>(x[i], w, to, to + to_low);
        if constexpr (kSums) {
          sum = warp_sum<8>(sum);
          const float part = tf32_part(sum);
          if (threadIdx.x % 8 == 0) sum_to[0] = part;
          if (threadIdx.x % 8 == 1) sum_to[sums_to_low] = tf32_part(sum - part);
        }
      }
    }
  }
  if (!a.normalize) return;
  keep_squares(total, a.tokens, p, squares);
}

}  // namespace gsa::cuda::small
