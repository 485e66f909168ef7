// Activations as two bfloat16 halves whose sum is the value to 16 bits, and the product that tensor
// cores make of them.
#pragma once

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {

// d += a b for bfloat16 a [16, 16], b [16, 8]. Not volatile: the compiler may move it.
__device__ __forceinline__ void mma(const uint4& a, uint32_t b0, uint32_t b1, float (&d)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

// The same for a group of 32 columns, of which a lane 4 g + j has columns 8 j to 8 j + 7: of rows g
// and 8 + g of a, and of column g of b.
__device__ __forceinline__ void add_group(const uint4& upper, const uint4& lower, const uint4& b,
                                          float (&d)[4]) {
  mma(make_uint4(upper.x, lower.x, upper.y, lower.y), b.x, b.y, d);
  mma(make_uint4(upper.z, lower.z, upper.w, lower.w), b.z, b.w, d);
}

// Two floats of a bfloat16 pair.
__device__ __forceinline__ float2 unpack(const __nv_bfloat162& pair) {
  const uint32_t bits = reinterpret_cast<const uint32_t&>(pair);
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// {bfloat16 x, y rounded} as one word, and what the rounding left as another.
__device__ __forceinline__ uint2 split_pair(float x, float y) {
  const __nv_bfloat162 high = __floats2bfloat162_rn(x, y);
  const __nv_bfloat162 low = __floats2bfloat162_rn(x - __low2float(high), y - __high2float(high));
  return make_uint2(*reinterpret_cast<const uint32_t*>(&high),
                    *reinterpret_cast<const uint32_t*>(&low));
}

// The sum of what both words hold.
__device__ __forceinline__ float pair_sum(const uint2& halves) {
  const float2 high = unpack(reinterpret_cast<const __nv_bfloat162&>(halves.x));
  const float2 low = unpack(reinterpret_cast<const __nv_bfloat162&>(halves.y));
  return (high.x + high.y) + (low.x + low.y);
}

// Stores two split pairs that stand beside each other.
__device__ __forceinline__ void store_halves(const uint2& front, const uint2& back,
                                             __nv_bfloat16* high, __nv_bfloat16* low) {
  *reinterpret_cast<uint2*>(high) = make_uint2(front.x, back.x);
  *reinterpret_cast<uint2*>(low) = make_uint2(front.y, back.y);
}

}  // namespace gsa::cuda
