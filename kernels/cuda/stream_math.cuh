// Arithmetic of the warps of a persistent kernel that compute.
#pragma once

#include <cuda_bf16.h>

#include "kernels/cuda/halves.cuh"
#include "kernels/cuda/stream_plan.h"

namespace gsa::cuda {

// Of the warps that compute.
__device__ __forceinline__ void stream_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kStreamThreads) : "memory");
}

__device__ __forceinline__ float4 load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ float sum_of(const float4& v) { return (v.x + v.y) + (v.z + v.w); }

// Adds up vectors of 4 columns over the threads of a warp that agree in threadIdx.x modulo
// 2^shift, and leaves what is left to add as sums[kStreamWarps][pitch].
__device__ __forceinline__ void fold(float4 v, int shift, float* sums, int pitch) {
#pragma unroll 1
  for (int offset = 16; offset >> shift > 0; offset /= 2) {
    v.x += __shfl_xor_sync(kAllLanes, v.x, offset);
    v.y += __shfl_xor_sync(kAllLanes, v.y, offset);
    v.z += __shfl_xor_sync(kAllLanes, v.z, offset);
    v.w += __shfl_xor_sync(kAllLanes, v.w, offset);
  }
  const int span = max(shift, 5), lane = threadIdx.x & ((1 << span) - 1);
  if (lane >> shift > 0) return;
#pragma unroll 1
  for (int row = threadIdx.x >> span; row < kStreamWarps; row += kStreamThreads >> span) {
    *reinterpret_cast<float4*>(sums + row * pitch + lane * 4) = v;
    v = make_float4(0, 0, 0, 0);  // where there are fewer rows than warps
  }
}
__device__ __forceinline__ float folded(const float* sums, int pitch) {
  static_assert(kStreamWarps == 8);
  const float* back = sums + 4 * pitch;
  return sum_of(make_float4(sums[0], sums[pitch], sums[2 * pitch], sums[3 * pitch])) +
         sum_of(make_float4(back[0], back[pitch], back[2 * pitch], back[3 * pitch]));
}

}  // namespace gsa::cuda
