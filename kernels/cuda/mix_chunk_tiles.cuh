// Tiles in shared memory and products of them on tensor cores (TF32 operands, float32 sums).
//
// The products are 16 x 8 x 8, spread over a warp: with r = lane / 4 and c = lane % 4 a lane holds
//   a: (r, c) (r+8, c) (r, c+4) (r+8, c+4)   b: (c, r) (c+4, r)   sums: (r, 2c) (r, 2c+1) (r+8, ..)
#pragma once

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {

// x as an operand that is nearest to it: the tensor cores ignore the 13 lowest bits, so half of
// what they stand for is added (but not to a NaN, which would wrap around). What comes out is an
// operand and no longer the number x.
__device__ __forceinline__ float tf32(float x) {
  return x == x ? __uint_as_float(__float_as_uint(x) + 0x1000u) : x;
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

// Four parts of 8 rows x 4 columns, one a register; lane i points to row i % 8 of part i / 8.
__device__ __forceinline__ void load_parts(const float* row, float (&parts)[4]) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  uint32_t x[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from));
#pragma unroll
  for (int i = 0; i < 4; ++i) parts[i] = __uint_as_float(x[i]);
}

// The 16 x 8 part of `tile` at its first element, as an operand a. Rows start at multiples of 16
// bytes here and below; without bank conflicts where row_stride % 8 == 4.
__device__ __forceinline__ void load_a(const float* tile, int row_stride, float (&a)[4]) {
  const int lane = threadIdx.x % 32;
  load_parts(tile + lane % 16 * row_stride + lane / 16 * 4, a);
}

// 8 columns of b stored as rows of 16: b of the first eight, then of the others.
__device__ __forceinline__ void load_b(const float* tile, int row_stride, float (&b)[4]) {
  const int lane = threadIdx.x % 32;
  load_parts(tile + lane % 8 * row_stride + lane / 8 * 4, b);
}

// As load_a(), of a tile stored transposed. Without bank conflicts where row_stride % 16 == 8.
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

// silu in six instructions, to about 2^-21 of its value.
__device__ __forceinline__ float fast_silu(float x) {
  float power;
  float inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return x * inverse;
}

// phi of four numbers, as operands.
__device__ __forceinline__ float4 relu_operands(const float4& x) {
  return {tf32(fmaxf(x.x, 0.0f)), tf32(fmaxf(x.y, 0.0f)), tf32(fmaxf(x.z, 0.0f)),
          tf32(fmaxf(x.w, 0.0f))};
}
__device__ __forceinline__ float4 silu_operands(const float4& x) {
  return {tf32(fast_silu(x.x)), tf32(fast_silu(x.y)), tf32(fast_silu(x.z)), tf32(fast_silu(x.w))};
}

__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool valid) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
}

// A tile of kRows x kColumns floats in shared memory, handled by kThreads threads in pieces of four
// floats; every thread has the same pieces in all functions.
template <int kThreads, int kRows, int kColumns, int kRowStride>
struct Tile {
  static constexpr int kStride = kRowStride;
  static constexpr int kFloats = kRows * kStride;
  static constexpr int kRowPieces = kColumns / 4;
  static constexpr int kStep = kThreads / kRowPieces;  // rows between two pieces of a thread
  static_assert(kColumns % 4 == 0 && kStride % 4 == 0 && kThreads % kRowPieces == 0 &&
                kRows % kStep == 0);

  __device__ static __forceinline__ int first_row() { return threadIdx.x / kRowPieces; }
  __device__ static __forceinline__ int column() { return threadIdx.x % kRowPieces * 4; }
  // The first piece of this thread; the others follow kStep rows apart.
  __device__ static __forceinline__ float* pieces(float* tile) {
    return tile + first_row() * kStride + column();
  }

  // Starts to copy the tile whose first element is global[0]; zeros past `rows` and `columns`.
  __device__ static __forceinline__ void copy(float* tile, const float* global, int64_t row_stride,
                                              int rows, int columns, bool vectors) {
    float* to = pieces(tile);
    const float* from = global + first_row() * row_stride + column();
    if (vectors) {
      const int valid_rows = column() < columns ? rows - first_row() : 0;
#pragma unroll
      for (int row = 0; row < kRows; row += kStep) {
        copy_async(to + row * kStride, from, row < valid_rows);  // reads nothing past the end
        from += kStep * row_stride;
      }
      return;
    }
#pragma unroll 1
    for (int row = first_row(); row < kRows; row += kStep) {
      for (int j = 0; j < 4; ++j) {
        const bool valid = row < rows && column() + j < columns;
        copy_async_4(to + j, valid ? from + j : global, valid);
      }
      to += kStep * kStride;
      from += kStep * row_stride;
    }
  }

  // The same from scratch memory: aligned, and all of it there.
  template <int kGlobalStride>
  __device__ static __forceinline__ void copy(float* tile, const float* global) {
    float* to = pieces(tile);
    const float* from = global + first_row() * kGlobalStride + column();
#pragma unroll
    for (int row = 0; row < kRows; row += kStep) {
      copy_async(to + row * kStride, from + row * kGlobalStride);
    }
  }

  // Replaces what this thread has copied by phi of it, as operands.
  __device__ static __forceinline__ void activate(float* tile, bool relu) {
    float* at = pieces(tile);
    if (relu) {
#pragma unroll
      for (int row = 0; row < kRows; row += kStep) {
        float4& x = *reinterpret_cast<float4*>(at + row * kStride);
        x = relu_operands(x);
      }
    } else {
#pragma unroll
      for (int row = 0; row < kRows; row += kStep) {
        float4& x = *reinterpret_cast<float4*>(at + row * kStride);
        x = silu_operands(x);
      }
    }
  }

  // Copies this thread's pieces back.
  __device__ static __forceinline__ void store(float* tile, float* global, int64_t row_stride,
                                               int rows, int columns, bool vectors) {
    const float* from = pieces(tile);
    float* to = global + first_row() * row_stride + column();
    if (vectors) {
      const int valid_rows = column() < columns ? rows - first_row() : 0;
#pragma unroll
      for (int row = 0; row < kRows; row += kStep) {
        if (row < valid_rows) {
          *reinterpret_cast<float4*>(to) = *reinterpret_cast<const float4*>(from + row * kStride);
        }
        to += kStep * row_stride;
      }
      return;
    }
#pragma unroll 1
    for (int row = first_row(); row < rows; row += kStep) {
      for (int j = 0; j < 4; ++j) {
        if (column() + j < columns) to[j] = from[j];
      }
      from += kStep * kStride;
      to += kStep * row_stride;
    }
  }
};

}  // namespace gsa::cuda
