// Page-locked host memory, which devices copy to and from while they work on.
#pragma once

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/common.cuh"
#include "kernels/host_floats.h"

namespace gsa::cuda {

// In huge pages where the system has them: locking 24 MiB then takes 3 ms. cudaMallocHost takes 12.
// Where the system locks no more pages, the memory is as good but slow to copy.
inline Buffer lock_pages(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw Error("cannot allocate {:.3f} GiB of memory: {}", bytes / 0x1p30, std::strerror(errno));
  }
  madvise(data, bytes, MADV_HUGEPAGE);
  const bool locked = cudaHostRegister(data, bytes, cudaHostRegisterDefault) == cudaSuccess;
  if (!locked) cudaGetLastError();
  return Buffer(data, bytes, [bytes, locked](void* p) {
    if (locked) cudaHostUnregister(p);
    munmap(p, bytes);
  });
}

// Page-locked floats, and when devices are done with them.
class PinnedFloats final : public HostFloats::Memory {
 public:
  explicit PinnedFloats(size_t count) : count_(count), floats_(lock_pages(count * sizeof(float))) {
    GSA_CUDA_CHECK(cudaEventCreateWithFlags(used_.out(), cudaEventDisableTiming));
  }
  ~PinnedFloats() override { cudaEventSynchronize(used_.get()); }

  const float* data() const override {
    GSA_CUDA_CHECK(cudaEventSynchronize(used_.get()));
    return floats_.f32();
  }

  size_t count() const { return count_; }
  // For copies: the memory, whoever uses it, and the event behind its last use. A stream waits for
  // that before it uses the memory, and records it afterwards.
  float* pinned() const { return floats_.f32(); }
  cudaEvent_t used() const { return used_.get(); }

 private:
  size_t count_;
  Buffer floats_;
  Event used_;
};

// A few blocks that were given up wait for the next of their size, since locking pages takes the
// host longer than a step takes the device: a cache that evicts as it inserts needs no others. The
// pool lives as long as its blocks, which any thread may give up.
class PinnedPool : public std::enable_shared_from_this<PinnedPool> {
 public:
  std::shared_ptr<PinnedFloats> take(size_t count) {
    std::unique_ptr<PinnedFloats> floats = take_spare(count);
    if (!floats) floats = std::make_unique<PinnedFloats>(count);
    const auto give_back = [pool = shared_from_this()](PinnedFloats* given) {
      pool->keep(std::unique_ptr<PinnedFloats>(given));
    };
    return {floats.release(), give_back};
  }

 private:
  static constexpr size_t kSpares = 4;  // of a size

  std::unique_ptr<PinnedFloats> take_spare(size_t count) {
    const std::lock_guard lock(mutex_);
    auto& spares = spares_[count];
    if (spares.empty()) return nullptr;
    std::unique_ptr<PinnedFloats> floats = std::move(spares.back());
    spares.pop_back();
    return floats;
  }

  void keep(std::unique_ptr<PinnedFloats> floats) {
    const std::lock_guard lock(mutex_);
    auto& spares = spares_[floats->count()];
    if (spares.size() < kSpares) spares.push_back(std::move(floats));
  }

  std::mutex mutex_;
  std::map<size_t, std::vector<std::unique_ptr<PinnedFloats>>> spares_;
};

}  // namespace gsa::cuda
