// What every file of the CUDA backend needs: checked calls, handles that free themselves, and how a
// kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "kernels/error.h"

namespace gsa::cuda {

constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

// Evaluates a CUDA call and throws gsa::Error naming it where it fails.
#define GSA_CUDA_CHECK(call) ::gsa::cuda::check((call), #call)

// The same for an allocation, with its size.
inline void check_memory(cudaError_t status, size_t bytes, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw Error("CUDA: cannot allocate " + std::to_string((bytes + 0xfffff) >> 20) + " MiB of " +
              what + ": " + cudaGetErrorString(status));
}

// A CUDA handle that is destroyed with its owner.
template <typename T, cudaError_t (*kDestroy)(T)>
class Handle {
 public:
  Handle() = default;
  explicit Handle(T value) : value_(value) {}
  Handle(Handle&& other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~Handle() {
    if (value_ != nullptr) kDestroy(value_);
  }

  T get() const { return value_; }
  T* out() { return &value_; }
  explicit operator bool() const { return value_ != nullptr; }

 private:
  T value_ = nullptr;
};

using Stream = Handle<cudaStream_t, cudaStreamDestroy>;
using Event = Handle<cudaEvent_t, cudaEventDestroy>;
using Graph = Handle<cudaGraph_t, cudaGraphDestroy>;
using GraphExec = Handle<cudaGraphExec_t, cudaGraphExecDestroy>;

// Device memory of n elements, or none.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t n) {
    if (n == 0) return;
    void* data = nullptr;
    check_memory(cudaMalloc(&data, n * sizeof(T)), n * sizeof(T), "device memory");
    data_ = Memory(data);
  }
  T* get() const { return static_cast<T*>(data_.get()); }

 private:
  using Memory = Handle<void*, cudaFree>;
  Memory data_;
};

// Page-locked host memory of n elements.
template <typename T>
class PinnedArray {
 public:
  PinnedArray() = default;
  explicit PinnedArray(size_t n) {
    void* data = nullptr;
    check_memory(cudaMallocHost(&data, n * sizeof(T)), n * sizeof(T), "page-locked memory");
    data_ = Memory(data);
  }
  T* get() const { return static_cast<T*>(data_.get()); }
  T& operator[](size_t i) const { return get()[i]; }

 private:
  using Memory = Handle<void*, cudaFreeHost>;
  Memory data_;
};

// Where and how kernels are launched: the stream, and whether a kernel may start while the one
// before it still runs (programmatic dependent launch; the kernel then calls grid_wait() before it
// touches anything that an earlier kernel wrote, and grid_release() to let the next one start).
struct Launch {
  cudaStream_t stream = nullptr;
  bool overlap = false;
  int multiprocessors = 1;
  size_t shared_limit = 48 * 1024;  // bytes of shared memory that a block may have
  bool clusters = false;            // the device has thread block clusters (compute capability 9.0)
};

struct Grid {
  dim3 blocks;
  dim3 threads;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  // blocks of a cluster along x
};

template <typename... Params, typename... Args>
void launch(const Launch& how, const Grid& grid, void (*kernel)(Params...), Args&&... args) {
  cudaLaunchAttribute attributes[3];
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = how.stream;
  config.attrs = attributes;
  // Kernels that overlap must agree on how a multiprocessor divides its memory.
  cudaLaunchAttribute& division = attributes[config.numAttrs++];
  division.id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  division.val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  if (how.overlap) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (grid.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[config.numAttrs++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {grid.cluster, 1, 1};
  }
  GSA_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

// How many clusters of so many blocks run at the same time, if nothing else does.
template <typename Kernel>
int clusters_at_once(const Grid& grid, Kernel* kernel) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {grid.cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  GSA_CUDA_CHECK(cudaOccupancyMaxActiveClusters(&count, kernel, &config));
  return count;
}

// A block gets more than 48 KiB of shared memory only after this.
template <typename Kernel>
void allow_shared_memory(Kernel* kernel, size_t bytes) {
  if (bytes <= 48 * 1024) return;
  GSA_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)));
}

}  // namespace gsa::cuda
