// Moves weights from mapped files to the device.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>

#include "kernels/cuda/common.cuh"

namespace gsa::cuda {

// Reads the next piece of a file into page-locked memory while the device takes the last one.
class Uploader {
 public:
  explicit Uploader(cudaStream_t stream) : stream_(stream), pinned_(kSlots * kSlotBytes) {
    for (Event& event : taken_) {
      GSA_CUDA_CHECK(cudaEventCreateWithFlags(event.out(), cudaEventDisableTiming));
    }
  }

  // Returns when the host memory has been read; the copy itself is queued on the stream.
  void upload(const void* host, size_t bytes, void* device) {
    for (size_t done = 0; done < bytes; done += kSlotBytes) {
      const size_t n = bytes - done < kSlotBytes ? bytes - done : kSlotBytes;
      std::byte* slot = pinned_.get() + slot_ * kSlotBytes;
      GSA_CUDA_CHECK(cudaEventSynchronize(taken_[slot_].get()));
      std::memcpy(slot, static_cast<const std::byte*>(host) + done, n);
      GSA_CUDA_CHECK(cudaMemcpyAsync(static_cast<std::byte*>(device) + done, slot, n,
                                     cudaMemcpyHostToDevice, stream_));
      GSA_CUDA_CHECK(cudaEventRecord(taken_[slot_].get(), stream_));
      slot_ = (slot_ + 1) % kSlots;
    }
  }

  ~Uploader() { cudaStreamSynchronize(stream_); }

 private:
  static constexpr size_t kSlots = 2;
  static constexpr size_t kSlotBytes = size_t{16} << 20;

  cudaStream_t stream_;
  PinnedArray<std::byte> pinned_;
  std::array<Event, kSlots> taken_;
  size_t slot_ = 0;
};

}  // namespace gsa::cuda
