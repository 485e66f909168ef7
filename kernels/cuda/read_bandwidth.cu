#include "kernels/cuda/read_bandwidth.cuh"

#include <algorithm>

namespace gsa::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kUnroll = 8;

// Times that a launch reads the buffer, so that its start and end weigh little.
constexpr int kRounds = 4;

// A sum over all words, which no compiler can skip.
__global__ void __launch_bounds__(kThreads)
    fold_kernel(const uint4* words, int64_t count, unsigned* sink) {
  unsigned folded = 0;
  const int64_t step = int64_t{gridDim.x} * kThreads * kUnroll;
#pragma unroll 1
  for (int round = 0; round < kRounds; ++round) {
    for (int64_t at = int64_t{blockIdx.x} * kThreads * kUnroll + threadIdx.x; at < count;
         at += step) {
      uint4 w[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) w[i] = __ldcs(words + at + i * kThreads);
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) folded += w[i].x ^ w[i].y ^ w[i].z ^ w[i].w;
    }
  }
  if (folded == 1) *sink = folded;
}

}  // namespace

double measure_read_bandwidth(const Launch& how) {
  constexpr int kPasses = 5;
  size_t free = 0, total = 0;
  GSA_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  const size_t unit = size_t{kThreads} * kUnroll * sizeof(uint4);
  const size_t bytes = std::min(free / 2, size_t{1} << 30) / unit * unit;
  if (bytes == 0) return 0;
  const DeviceArray<uint4> words(bytes / sizeof(uint4));
  const DeviceArray<unsigned> sink(1);
  GSA_CUDA_CHECK(cudaMemsetAsync(words.get(), 0x5a, bytes, how.stream));
  Event begin, end;
  GSA_CUDA_CHECK(cudaEventCreate(begin.out()));
  GSA_CUDA_CHECK(cudaEventCreate(end.out()));
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    GSA_CUDA_CHECK(cudaEventRecord(begin.get(), how.stream));
    launch({.stream = how.stream},
           {.blocks = static_cast<unsigned>(how.multiprocessors * 4), .threads = kThreads},
           fold_kernel, static_cast<const uint4*>(words.get()),
           static_cast<int64_t>(bytes / sizeof(uint4)), sink.get());
    GSA_CUDA_CHECK(cudaEventRecord(end.get(), how.stream));
    GSA_CUDA_CHECK(cudaEventSynchronize(end.get()));
    float ms = 0;
    GSA_CUDA_CHECK(cudaEventElapsedTime(&ms, begin.get(), end.get()));
    best = std::max(best, static_cast<double>(bytes) * kRounds / (ms * 1e-3));
  }
  return best;
}

}  // namespace gsa::cuda
