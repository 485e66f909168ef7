// Which GPU, and its memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda/common.cuh"

namespace gsa::cuda {

// The first GPU that the runtime shows (CUDA_VISIBLE_DEVICES chooses).
inline cudaDeviceProp find_device() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    throw Error("--device cuda: no NVIDIA GPU is available ({}); use --device cpu",
                status == cudaSuccess ? "none found" : cudaGetErrorString(status));
  }
  cudaDeviceProp properties;
  GSA_CUDA_CHECK(cudaGetDeviceProperties(&properties, 0));
  if (properties.major < 8) {
    throw Error("--device cuda: {} has compute capability {}.{}; 8.0 or newer is needed",
                properties.name, properties.major, properties.minor);
  }
  return properties;
}

inline int64_t free_memory() {
  size_t free = 0, total = 0;
  GSA_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

// Zeroed by the stream. `device` is its name for people.
inline Buffer allocate(const std::string& device, cudaStream_t stream, size_t bytes) {
  void* data = nullptr;
  if (cudaMalloc(&data, std::max<size_t>(bytes, 1)) != cudaSuccess) {
    cudaGetLastError();
    throw Error("cannot allocate {:.2f} GiB on {}: {:.2f} GiB are free", bytes / 0x1p30, device,
                free_memory() / 0x1p30);
  }
  Buffer buffer(data, bytes, [](void* p) { cudaFree(p); });
  GSA_CUDA_CHECK(cudaMemsetAsync(data, 0, bytes, stream));
  return buffer;
}

}  // namespace gsa::cuda
