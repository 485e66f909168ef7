// What the kernels of matrix-vector products share: blocks of at most 16 warps, each with 16 rows
// (two tiles of 8; of a gated product one of gate rows and one of up rows) and a slice of the
// columns.
#pragma once

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {

constexpr int kMostWarps = 16;  // of a block
constexpr int kTileRows = 8;
constexpr int kRows = 2 * kTileRows;  // of a warp

// squares[t * kMostWarps + warp], which is the sum over all panels of the squares that the threads
// of a warp have read of token t.
template <int kTokens>
__device__ __forceinline__ void keep_squares(const float (&sums)[kTokens], int tokens, int panel,
                                             float* squares) {
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    if (t >= tokens) break;
    const float sum = warp_sum(sums[t]);
    if (threadIdx.x % 32 != 0) continue;
    float& total = squares[t * kMostWarps + threadIdx.x / 32];
    total = panel > 0 ? total + sum : sum;
  }
}

// Adds up partial[warp][token][row of the warp] over the slices and finishes the rows of block
// `block`. Args has tokens, rows, cols, y, y_stride, groups, slices, eps and what is done with
// them.
template <typename Args>
__device__ __forceinline__ void finish_rows(const Args& a, int block, const float* partial,
                                            const float* squares) {
  const int outputs = a.gated ? kTileRows : kRows, warps = blockDim.x / 32;
  for (int o = threadIdx.x; o < a.tokens * a.groups * kRows; o += blockDim.x) {
    const int r = o % kRows, t = o / kRows % a.tokens, group = o / kRows / a.tokens;
    const int row = (block * a.groups + group) * outputs + r;
    if (r >= outputs || row >= a.rows) continue;
    float* y = a.y + int64_t{t} * a.y_stride + row;
    const float before = a.accumulate ? *y : 0.0f;
    float sum = 0, up = 0, norm = 0;
    const float* from = partial + (group * a.slices * a.tokens + t) * kRows + r;
    for (int s = 0; s < a.slices; ++s, from += a.tokens * kRows) {
      sum += from[0];
      if (a.gated) up += from[kTileRows];
    }
    if (a.normalize) {
      for (int w = 0; w < warps; ++w) norm += squares[t * kMostWarps + w];
    }
    // The norm's scale commutes with the product.
    const float scale = a.normalize ? rsqrtf(norm / a.cols + a.eps) : 1.0f;
    *y = a.gated ? silu(sum * scale) * (up * scale) : before + sum * scale;
  }
}

}  // namespace gsa::cuda
