// Floats on their way between a device and page-locked host memory, while the device works on.
#pragma once

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <utility>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/pinned_floats.h"
#include "kernels/host_floats.h"

namespace gsa::cuda {

// Copies that stand at their place in the order of a stream. What goes out is set aside in device
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
    if (const Slot* slot = next_slot(count)) {
      const cudaEvent_t used = slot->used.get();
      copy(device, count, slot->floats.get(), cudaMemcpyDeviceToDevice, stream_, used);
      GSA_CUDA_CHECK(cudaStreamWaitEvent(aside_.get(), used, 0));
      copy(slot->floats.get(), count, host->pinned(), cudaMemcpyDeviceToHost, aside_.get(),
           host->used());
      GSA_CUDA_CHECK(cudaEventRecord(used, aside_.get()));
    } else {
      copy(device, count, host->pinned(), cudaMemcpyDeviceToHost, stream_, host->used());
    }
    return HostFloats(host, count);
  }

  void copy_in(const HostFloats& host, float* device) {
    if (const auto* floats = dynamic_cast<const PinnedFloats*>(host.memory())) {
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
    explicit Slot(size_t count) : floats(count) {
      GSA_CUDA_CHECK(cudaEventCreateWithFlags(used.out(), cudaEventDisableTiming));
    }
    DeviceArray<float> floats;
    Event used;
  };
  static constexpr size_t kSlots = 8;  // of a size

  // The one that is free first; another where that is still in use. Null where the device has no
  // memory for any.
  const Slot* next_slot(size_t count) {
    std::deque<Slot>& slots = slots_[count];
    const bool busy =
        slots.empty() || cudaEventQuery(slots.front().used.get()) == cudaErrorNotReady;
    if (busy && slots.size() < kSlots) {
      try {
        slots.emplace_front(count);
      } catch (const Error&) {
        if (slots.empty()) return nullptr;  // else the stream waits for it
      }
    }
    slots.push_back(std::move(slots.front()));
    slots.pop_front();
    return &slots.back();
  }

  // Between two uses of the memory that `used` is of.
  static void copy(const float* from, size_t count, float* to, cudaMemcpyKind kind,
                   cudaStream_t stream, cudaEvent_t used) {
    GSA_CUDA_CHECK(cudaStreamWaitEvent(stream, used, 0));
    GSA_CUDA_CHECK(cudaMemcpyAsync(to, from, count * sizeof(float), kind, stream));
    GSA_CUDA_CHECK(cudaEventRecord(used, stream));
  }

  cudaStream_t stream_;
  std::shared_ptr<PinnedPool> pool_;
  Stream aside_;
  std::map<size_t, std::deque<Slot>> slots_;  // by their size, in the order in which they get free
};

}  // namespace gsa::cuda
