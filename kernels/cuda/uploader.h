// Moves weights from mapped files to the device.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/small_weights.h"

namespace gsa::cuda {

// Reads the next piece of a file into page-locked memory while the device takes the last one.
class Uploader {
 public:
  explicit Uploader(const Launch& how) : how_(how), pinned_(kSlots * kSlotBytes) {
    for (Event& event : taken_) {
      GSA_CUDA_CHECK(cudaEventCreateWithFlags(event.out(), cudaEventDisableTiming));
    }
  }

  // Bytes that a weight takes on the device.
  static size_t device_bytes(const TensorView& host) {
    return is_quantized(host.dtype) ? small_bytes(host) : host.bytes();
  }

  // Returns when the host memory has been read; the copy itself is queued on the stream.
  void upload(const TensorView& host, void* device) {
    if (!is_quantized(host.dtype)) return upload(host.data, host.bytes(), device);
    if (host.bytes() > stored_bytes_) {
      stored_ = {};  // waits for what still reads it
      stored_ = DeviceArray<std::byte>(host.bytes());
      stored_bytes_ = host.bytes();
    }
    TensorView stored = host;
    stored.data = stored_.get();
    upload(host.data, host.bytes(), stored.data);
    pack_small(how_, stored, device);
  }

  ~Uploader() { cudaStreamSynchronize(how_.stream); }

 private:
  static constexpr size_t kSlots = 2;
  static constexpr size_t kSlotBytes = size_t{16} << 20;

  void upload(const void* host, size_t bytes, void* device) {
    for (size_t done = 0; done < bytes; done += kSlotBytes) {
      const size_t n = bytes - done < kSlotBytes ? bytes - done : kSlotBytes;
      std::byte* slot = pinned_.get() + slot_ * kSlotBytes;
      GSA_CUDA_CHECK(cudaEventSynchronize(taken_[slot_].get()));
      std::memcpy(slot, static_cast<const std::byte*>(host) + done, n);
      GSA_CUDA_CHECK(cudaMemcpyAsync(static_cast<std::byte*>(device) + done, slot, n,
                                     cudaMemcpyHostToDevice, how_.stream));
      GSA_CUDA_CHECK(cudaEventRecord(taken_[slot_].get(), how_.stream));
      slot_ = (slot_ + 1) % kSlots;
    }
  }

  Launch how_;
  PinnedArray<std::byte> pinned_;
  std::array<Event, kSlots> taken_;
  size_t slot_ = 0;
  DeviceArray<std::byte> stored_;  // a small weight as files hold it, on its way
  size_t stored_bytes_ = 0;
};

}  // namespace gsa::cuda
