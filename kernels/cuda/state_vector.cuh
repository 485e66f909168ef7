// Elements of a memory in registers: always floats there, stored as float32 or in 16 bits. Vectors
// of several are read and written 16 bytes at a time.
#pragma once

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {

// kWidth consecutive numbers.
template <int kWidth>
struct Vec {
  float v[kWidth];
};

template <int kWidth>
__device__ __forceinline__ Vec<kWidth> load(const float* p) {
  Vec<kWidth> x;
  if constexpr (kWidth == 1) {
    x.v[0] = *p;
  } else {
    const float4 f = *reinterpret_cast<const float4*>(p);
    x.v[0] = f.x, x.v[1] = f.y, x.v[2] = f.z, x.v[3] = f.w;
    if constexpr (kWidth == 8) {
      const float4 g = *reinterpret_cast<const float4*>(p + 4);
      x.v[4] = g.x, x.v[5] = g.y, x.v[6] = g.z, x.v[7] = g.w;
    }
  }
  return x;
}

// Of 16 bits each.
template <int kWidth, typename T>
__device__ __forceinline__ Vec<kWidth> load(const T* p) {
  Vec<kWidth> x;
  if constexpr (kWidth == 1) {
    x.v[0] = to_float(*p);
  } else {
    static_assert(kWidth == 8);
    const uint4 bits = *reinterpret_cast<const uint4*>(p);
#pragma unroll
    for (int i = 0; i < 8; ++i) x.v[i] = to_float(reinterpret_cast<const T*>(&bits)[i]);
  }
  return x;
}

template <int kWidth>
__device__ __forceinline__ void store(const Vec<kWidth>& x, float* p) {
  if constexpr (kWidth == 1) {
    *p = x.v[0];
  } else {
    *reinterpret_cast<float4*>(p) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
    if constexpr (kWidth == 8) {
      *reinterpret_cast<float4*>(p + 4) = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
    }
  }
}

__device__ __forceinline__ __half2 rounded(float x, float y, __half) {
  return __floats2half2_rn(x, y);
}
__device__ __forceinline__ __nv_bfloat162 rounded(float x, float y, __nv_bfloat16) {
  return __floats2bfloat162_rn(x, y);
}

// Writes 16 bytes; kDrop: they need not stay in the cache.
template <bool kDrop, typename V>
__device__ __forceinline__ void put(const V& x, void* p) {
  if constexpr (kDrop) {
    __stcs(static_cast<V*>(p), x);
  } else {
    *static_cast<V*>(p) = x;
  }
}

// Writes x to a memory of T; x becomes what is stored. kDrop as in put().
template <bool kDrop, int kWidth, typename T>
__device__ __forceinline__ void store_rounded(Vec<kWidth>& x, T* p) {
  if constexpr (sizeof(T) == sizeof(float) && kWidth == 1) {
    *p = x.v[0];
  } else if constexpr (sizeof(T) == sizeof(float)) {
    static_assert(kWidth == 4);
    put<kDrop>(make_float4(x.v[0], x.v[1], x.v[2], x.v[3]), p);
  } else if constexpr (kWidth == 1) {
    *p = T(x.v[0]);
    x.v[0] = to_float(*p);
  } else {
    static_assert(kWidth == 8);
    using Pair = decltype(rounded(0, 0, T()));
    uint4 bits;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const Pair pair = rounded(x.v[i], x.v[i + 1], T());
      reinterpret_cast<Pair*>(&bits)[i / 2] = pair;
      x.v[i] = to_float(pair.x), x.v[i + 1] = to_float(pair.y);
    }
    put<kDrop>(bits, p);
  }
}

}  // namespace gsa::cuda
