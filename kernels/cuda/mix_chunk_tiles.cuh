// Tiles in shared memory and products of them on tensor cores (TF32 operands, float32 sums).
//
// The products are 16 x 8 x 8, spread over a warp: with r = lane / 4 and c = lane % 4 a lane holds
//   a: (r, c) (r+8, c) (r, c+4) (r+8, c+4)   b: (c, r) (c+4, r)   sums: (r, 2c) (r, 2c+1) (r+8, ..)
#pragma once

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {

// x rounded to the nearest number of TF32.
__device__ __forceinline__ float tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

__device__ __forceinline__ void multiply_add(float (&sums)[4], const float (&a)[4], float b0,
                                             float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// The 16 x 8 part of `tile` at its first element, as an operand a. Without bank conflicts where
// row_stride % 32 == 4.
__device__ __forceinline__ void load_a(const float* tile, int row_stride, float (&a)[4]) {
  const int lane = threadIdx.x % 32;
  const float* at = tile + lane / 4 * row_stride + lane % 4;
  a[0] = at[0];
  a[1] = at[8 * row_stride];
  a[2] = at[4];
  a[3] = at[8 * row_stride + 4];
}

// The same of a tile stored transposed. Without bank conflicts where row_stride % 16 == 8.
__device__ __forceinline__ void load_a_transposed(const float* tile, int row_stride,
                                                  float (&a)[4]) {
  const int lane = threadIdx.x % 32;
  const float* at = tile + lane % 4 * row_stride + lane / 4;
  a[0] = at[0];
  a[1] = at[8];
  a[2] = at[4 * row_stride];
  a[3] = at[4 * row_stride + 8];
}

__device__ __forceinline__ void round_all(float (&a)[4]) {
#pragma unroll
  for (float& x : a) x = tf32(x);
}

__device__ __forceinline__ float fast_silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }
__device__ __forceinline__ float activate(float x, bool relu) {
  return relu ? fmaxf(x, 0.0f) : fast_silu(x);
}

__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool valid) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}

// A tile of kRows x kColumns floats in shared memory, handled by kThreads threads in pieces of four
// floats; every thread has the same pieces in all functions.
template <int kThreads, int kRows, int kColumns, int kStride>
struct Tile {
  static constexpr int kFloats = kRows * kStride;
  static constexpr int kRowPieces = kColumns / 4;
  static constexpr int kPieces = kRows * kRowPieces;
  static_assert(kColumns % 4 == 0 && kStride % 4 == 0 && kPieces % kThreads == 0);

  // Calls visit(row, column) for the pieces of this thread.
  template <typename Visit>
  __device__ static __forceinline__ void for_pieces(Visit visit) {
#pragma unroll
    for (int first = 0; first < kPieces; first += kThreads) {
      const int piece = first + static_cast<int>(threadIdx.x);
      visit(piece / kRowPieces, piece % kRowPieces * 4);
    }
  }

  // Starts to copy the tile whose first element is global[0]; zeros past `rows` and `columns`.
  __device__ static __forceinline__ void copy(float* tile, const float* global, int64_t row_stride,
                                              int rows, int columns, bool vectors) {
    for_pieces([&](int row, int column) {
      float* to = tile + row * kStride + column;
      const float* from = global + row * row_stride + column;
      if (vectors) {
        const bool valid = row < rows && column < columns;
        copy_async(to, valid ? from : global, valid);
        return;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool valid = row < rows && column + j < columns;
        copy_async_4(to + j, valid ? from + j : global, valid);
      }
    });
  }

  // The same from scratch memory: aligned, and all of it there.
  __device__ static __forceinline__ void copy(float* tile, const float* global,
                                              int64_t row_stride) {
    for_pieces([&](int row, int column) {
      copy_async(tile + row * kStride + column, global + row * row_stride + column);
    });
  }
};

}  // namespace gsa::cuda
