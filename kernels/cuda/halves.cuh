// Activations as two bfloat16 halves whose sum is the value to 16 bits, for tensor cores.
#pragma once

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {

// Two floats of a bfloat16 pair.
__device__ __forceinline__ float2 unpack(const __nv_bfloat162& pair) {
  const uint32_t bits = reinterpret_cast<const uint32_t&>(pair);
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// Stores four activations of a token, times w, as halves; returns the sum of what the halves hold.
template <bool kSum>
__device__ __forceinline__ float store_halves(const float4& x, const float4& w, __nv_bfloat16* high,
                                              __nv_bfloat16* low) {
  const float2 v[2] = {make_float2(x.x * w.x, x.y * w.y), make_float2(x.z * w.z, x.w * w.w)};
  alignas(8) __nv_bfloat162 hi[2], lo[2];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    hi[i] = __floats2bfloat162_rn(v[i].x, v[i].y);
    const float2 h = unpack(hi[i]);
    lo[i] = __floats2bfloat162_rn(v[i].x - h.x, v[i].y - h.y);
    if constexpr (kSum) {
      const float2 l = unpack(lo[i]);
      sum += (h.x + h.y) + (l.x + l.y);
    }
  }
  *reinterpret_cast<uint2*>(high) = *reinterpret_cast<uint2*>(hi);
  *reinterpret_cast<uint2*>(low) = *reinterpret_cast<uint2*>(lo);
  return sum;
}

}  // namespace gsa::cuda
