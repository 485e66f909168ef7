#pragma once

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

}  // namespace gsa::cuda
