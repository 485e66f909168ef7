#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "kernels/backend.h"
#include "kernels/host_floats.h"

namespace gsa {

class StatePool;

// A state taken from a pool; goes back when destroyed. Movable.
class StateHandle {
 public:
  StateHandle() = default;
  StateHandle(StateHandle&& other) noexcept { *this = std::move(other); }
  StateHandle& operator=(StateHandle&& other) noexcept;
  ~StateHandle() { reset(); }

  explicit operator bool() const { return pool_ != nullptr; }
  int32_t index() const { return index_; }
  void reset();

 private:
  friend class StatePool;
  StateHandle(StatePool* pool, int32_t index) : pool_(pool), index_(index) {}

  StatePool* pool_ = nullptr;
  int32_t index_ = -1;
};

// What the memories of a state may be stored as.
inline constexpr DType kStateTypes[] = {DType::kF32, DType::kBF16, DType::kF16};

// The states of all sequences, in one block of device memory taken at the start: per state the
// memories hk [L,G,K,M] and hv [L,G,M,V] in the type of the pool, then the short convolutions' last
// inputs [L, conv_size-1, q_rows+k_rows+v_rows] in f32.
//
// Used by one thread at a time, the one that uses the backend. Must outlive its handles.
class StatePool {
 public:
  // Throws where the memory cannot be had, saying what `capacity` states take.
  StatePool(const GsaConfig& config, Backend& backend, int64_t capacity, DType type = DType::kF32);

  int64_t capacity() const { return capacity_; }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }
  DType type() const { return type_; }
  int64_t state_bytes() const { return state_bytes_; }

  // A state of zeros, or nothing when all are taken.
  std::optional<StateHandle> acquire();

  // Makes `to` equal `from`: a fork.
  void copy(const StateHandle& from, const StateHandle& to);

  // The whole state as floats in host memory, in the layout above, whatever the pool's type. They
  // are those of this moment in the order of the backend's work, and come while it goes on:
  // the state may change or be released at once. import rounds to nearest even, so what was
  // exported from the type comes back exactly; it throws unless the size is right.
  HostFloats export_state(const StateHandle& state);
  void import_state(const HostFloats& floats, const StateHandle& state);

  // Where layer i's parts of state 0 begin; the same part of state s lies s * stride(type)
  // elements of the part's type on.
  void* hk(int64_t layer) const;
  void* hv(int64_t layer) const;
  float* conv(int64_t layer) const;  // null where the model has no short convolutions
  int64_t stride(DType type) const {
    return stride_bytes_ / static_cast<int64_t>(dtype_bytes(type));
  }

 private:
  friend class StateHandle;
  void release(int32_t index);
  std::byte* at(int32_t index) const {
    return static_cast<std::byte*>(buffer_.data()) + index * stride_bytes_;
  }
  void fill(int32_t index, float value);
  int64_t memory_elements() const;
  int64_t state_floats() const;
  int64_t conv_bytes() const;
  int64_t conv_offset() const;  // bytes

  Backend& backend_;
  int64_t capacity_;
  DType type_;
  int64_t hk_elements_, hv_elements_, conv_floats_;  // of one layer
  int64_t layers_;
  int64_t state_bytes_;
  int64_t stride_bytes_;  // state_bytes_ rounded up, so that every state starts 64-byte aligned
  Buffer buffer_;
  Buffer wide_;  // of 16-bit memories: a state as floats, on its way out or in
  std::vector<int32_t> free_;
};

}  // namespace gsa
