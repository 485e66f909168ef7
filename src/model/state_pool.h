#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "kernels/backend.h"

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

// The memories of all sequences, in one block of device memory taken at the start: per state
// hk [L,G,K,M], hv [L,G,M,V], then the short convolutions' last inputs
// [L, conv_size-1, q_rows+k_rows+v_rows], all f32.
//
// Used by one thread at a time, the one that uses the backend. Must outlive its handles.
class StatePool {
 public:
  // Throws where the memory cannot be had, saying what `capacity` states take.
  StatePool(const GsaConfig& config, Backend& backend, int64_t capacity);

  int64_t capacity() const { return capacity_; }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }
  int64_t state_bytes() const { return state_floats_ * sizeof(float); }

  // A state of zeros, or nothing when all are taken.
  std::optional<StateHandle> acquire();

  // Makes `to` equal `from`: a fork.
  void copy(const StateHandle& from, const StateHandle& to);

  // The whole state as [state_bytes] bytes in host memory, in the layout above; waits for the
  // device. import throws unless the size is right.
  std::vector<float> export_state(const StateHandle& state);
  void import_state(const std::vector<float>& floats, const StateHandle& state);

  // Where layer i's parts of state 0 begin; the same part of state s lies s * stride() floats on.
  float* hk(int64_t layer) const;
  float* hv(int64_t layer) const;
  float* conv(int64_t layer) const;  // null where the model has no short convolutions
  int64_t stride() const { return stride_; }

 private:
  friend class StateHandle;
  void release(int32_t index);
  float* at(const StateHandle& state) const { return buffer_.f32() + state.index() * stride_; }

  Backend& backend_;
  int64_t capacity_;
  int64_t hk_floats_, hv_floats_, conv_floats_;  // of one layer
  int64_t layers_;
  int64_t state_floats_;
  int64_t stride_;  // state_floats_ rounded up, so that every state starts 64-byte aligned
  Buffer buffer_;
  std::vector<int32_t> free_;
};

}  // namespace gsa
