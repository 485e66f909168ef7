// Floats on their way between the device and page-locked host memory, while the device works on.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels/cuda/common.cuh"
#include "kernels/host_floats.h"

namespace gsa::cuda {

// Page-locked floats, and when a device is done with them.
class PinnedFloats final : public HostFloats::Memory {
 public:
  explicit PinnedFloats(size_t count) : count_(count), floats_(count) {
    GSA_CUDA_CHECK(cudaEventCreateWithFlags(used_.out(), cudaEventDisableTiming));
  }
  ~PinnedFloats() override { cudaEventSynchronize(used_.get()); }

  const float* data() const override {
    GSA_CUDA_CHECK(cudaEventSynchronize(used_.get()));
    return floats_.get();
  }

  size_t count() const { return count_; }
  // For the device: where they are, whoever uses them, and the event behind the last use. A stream
  // waits for it before it uses them, and records it afterwards.
  float* pinned() const { return floats_.get(); }
  cudaEvent_t used() const { return used_.get(); }

 private:
  size_t count_;
  PinnedArray<float> floats_;
  Event used_;
};

// Page-locking 24 MiB takes the host as long as several steps take the device, so a few blocks that
// were given up wait for the next of their size: a cache that evicts as it inserts needs no others.
// The pool lives as long as its blocks, which any thread may give up.
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

// Copies that a stream sees at their place in its order. What goes out is set aside in device
// memory, from where a second stream takes it to the host.
class HostCopier {
 public:
  explicit HostCopier(cudaStream_t stream)
      : stream_(stream), pool_(std::make_shared<PinnedPool>()) {
    GSA_CUDA_CHECK(cudaStreamCreateWithFlags(aside_.out(), cudaStreamNonBlocking));
  }
  ~HostCopier() { cudaStreamSynchronize(aside_.get()); }

  HostFloats copy_out(const float* device, size_t count) {
    const std::shared_ptr<PinnedFloats> host = pool_->take(count);
    Slot* slot = next_slot(count);
    if (slot == nullptr) {
      copy(device, count, host->pinned(), cudaMemcpyDeviceToHost, stream_, host->used());
      return HostFloats(host, count);
    }
    copy(device, count, slot->floats.get(), cudaMemcpyDeviceToDevice, stream_, slot->used.get());
    wait(aside_.get(), slot->used.get());
    copy(slot->floats.get(), count, host->pinned(), cudaMemcpyDeviceToHost, aside_.get(),
         host->used());
    GSA_CUDA_CHECK(cudaEventRecord(slot->used.get(), aside_.get()));
    return HostFloats(host, count);
  }

  void copy_in(const HostFloats& host, float* device) {
    const auto* floats = dynamic_cast<const PinnedFloats*>(host.memory());
    if (floats != nullptr) {
      return copy(floats->pinned(), host.size(), device, cudaMemcpyHostToDevice, stream_,
                  floats->used());
    }
    GSA_CUDA_CHECK(cudaMemcpyAsync(device, host.data(), host.size() * sizeof(float),
                                   cudaMemcpyHostToDevice, stream_));
    GSA_CUDA_CHECK(cudaStreamSynchronize(stream_));  // the memory may go away
  }

 private:
  // Device memory for what is on its way out, and the event behind its last use.
  struct Slot {
    DeviceArray<float> floats;
    Event used;
  };
  struct Ring {
    std::array<Slot, 4> slots;
    size_t next = 0;
  };

  // The slot that was taken longest ago, or null where the device has no memory for it.
  Slot* next_slot(size_t count) {
    Ring& ring = rings_[count];
    Slot& slot = ring.slots[ring.next++ % ring.slots.size()];
    if (slot.used) return &slot;
    try {
      slot.floats = DeviceArray<float>(count);
    } catch (const Error&) {
      return nullptr;
    }
    GSA_CUDA_CHECK(cudaEventCreateWithFlags(slot.used.out(), cudaEventDisableTiming));
    return &slot;
  }

  static void wait(cudaStream_t stream, cudaEvent_t event) {
    GSA_CUDA_CHECK(cudaStreamWaitEvent(stream, event, 0));
  }

  // Between two uses of the memory that `used` stands behind.
  static void copy(const float* from, size_t count, float* to, cudaMemcpyKind kind,
                   cudaStream_t stream, cudaEvent_t used) {
    wait(stream, used);
    GSA_CUDA_CHECK(cudaMemcpyAsync(to, from, count * sizeof(float), kind, stream));
    GSA_CUDA_CHECK(cudaEventRecord(used, stream));
  }

  cudaStream_t stream_;
  std::shared_ptr<PinnedPool> pool_;
  Stream aside_;
  std::map<size_t, Ring> rings_;  // by their size
};

}  // namespace gsa::cuda
