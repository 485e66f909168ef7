// How the blocks of a persistent kernel wait for memory and for each other.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// A barrier in shared memory whose phases end when all arrivals and bytes that were announced for
// them are there.
struct Barrier {
  uint64_t* at;

  __device__ __forceinline__ void init(int arrivals) const {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(arrivals));
  }
  __device__ __forceinline__ void arrive() const {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(at)) : "memory");
  }
  __device__ __forceinline__ void arrive_and_expect(uint32_t bytes) const {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(at)),
                 "r"(bytes)
                 : "memory");
  }
  // Waits until the phase of that parity has ended.
  __device__ __forceinline__ void wait(uint32_t parity) const {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(at)),
        "r"(parity)
        : "memory");
  }
};

// A bulk copy of a multiple of 16 bytes from global to shared memory, whose bytes the barrier
// counts. The second level cache may drop what was read first.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          const Barrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier.at)), "l"(policy)
      : "memory");
}
// The same for what is read by many.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          const Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier.at))
      : "memory");
}

// Copies the box of a matrix (stream_matrices.h) that begins at this row and block of columns to
// shared memory at a multiple of 1024 bytes; the barrier counts its bytes, those past the ends of
// the matrix too, which are zeros.
__device__ __forceinline__ void copy_box(void* shared, const CUtensorMap* matrix, int row,
                                         int block, const Barrier& barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(shared)),
      "l"(matrix), "r"(0), "r"(row), "r"(block), "r"(shared_address(barrier.at)), "l"(policy)
      : "memory");
}
// Before the first use of a matrix that the host has written.
__device__ __forceinline__ void acquire_matrix(const CUtensorMap* matrix) {
  asm volatile("fence.proxy.tensormap::generic.acquire.sys [%0], 128;" ::"l"(matrix) : "memory");
}
__device__ __forceinline__ void prefetch_matrix(const CUtensorMap* matrix) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(matrix) : "memory");
}

// Values that travel between blocks carry in their lowest two bits the epoch that they belong to,
// so that a reader polls the values themselves: an exchange is one trip through the second level
// cache, without fences or flags. Epochs of one buffer must differ from one use to the next modulo
// 4, and memory must be zero before epoch 1. What the reader takes is rounded to 22 bits of
// significand. A value is published only after all reads on which it depends, so who has read what
// a block published knows that the block has read what it needed for it.
__device__ __forceinline__ void publish(float* to, float value, uint32_t epoch) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = value == value ? bits + 2 : bits;  // a NaN must not wrap around
  asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" ::"l"(to), "r"((rounded & ~3u) | (epoch & 3))
               : "memory");
}

// To each of so many copies, which are so many floats apart.
template <int kCopies>
__device__ __forceinline__ void publish_all(float* to, int apart, float value, uint32_t epoch) {
#pragma unroll
  for (int i = 0; i < kCopies; ++i) publish(to + i * apart, value, epoch);
}

__device__ __forceinline__ uint32_t peek(const float* from) {
  uint32_t v;
  asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ float receive(const float* from, uint32_t epoch) {
  uint32_t v = peek(from);
  while (((v ^ epoch) & 3) != 0) v = peek(from);
  return __uint_as_float(v & ~3u);
}

// Four values at an address aligned to 16 bytes.
__device__ __forceinline__ uint4 peek4(const float* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ bool are_of(const uint4& v, uint32_t epoch) {
  return (((v.x ^ epoch) | (v.y ^ epoch) | (v.z ^ epoch) | (v.w ^ epoch)) & 3) == 0;
}
__device__ __forceinline__ float4 values_of(const uint4& v) {
  return make_float4(__uint_as_float(v.x & ~3u), __uint_as_float(v.y & ~3u),
                     __uint_as_float(v.z & ~3u), __uint_as_float(v.w & ~3u));
}

// Reads the wanted ones of n vectors until all are of the epoch; those that are late are asked for
// together.
template <int n, typename Wanted, typename From>
__device__ __forceinline__ void receive_all(uint4 (&v)[n], uint32_t epoch, const Wanted& wanted,
                                            const From& from) {
  const uint32_t none = epoch & 3;  // a zero
#pragma unroll
  for (int i = 0; i < n; ++i)
    v[i] = wanted(i) ? peek4(from(i)) : make_uint4(none, none, none, none);
  bool late;
  do {
    late = false;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (are_of(v[i], epoch)) continue;
      v[i] = peek4(from(i));
      late = true;
    }
  } while (late);
}

}  // namespace gsa::cuda
