#pragma once

#include <array>
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

// The states of all sequences, in device memory taken at the start: of every layer and state the
// memories hk [L, states, G, K, M] and hv [L, states, G, M, V] in the type of the pool, and the
// short convolutions' last inputs [L, states, conv_size-1, q_rows+k_rows+v_rows] in f32. A layer's
// memories lie beside each other, since that is how a step of many sequences reads them.
//
// Used by one thread at a time, the one that uses the backend. Must outlive its handles.
class StatePool {
 public:
  // Throws where the memory cannot be had, saying what `capacity` states take.
  StatePool(const GsaConfig& config, Backend& backend, int64_t capacity, DType type = DType::kF32);

  int64_t capacity() const { return capacity_; }
  int64_t available() const { return static_cast<int64_t>(free_.size()); }
  DType type() const { return parts_[0].type; }
  int64_t state_bytes() const { return state_bytes_; }

  // A state of zeros, or nothing when all are taken.
  std::optional<StateHandle> acquire();

  // Makes `to` equal `from`: a fork.
  void copy(const StateHandle& from, const StateHandle& to);

  // The whole state as floats in host memory, whatever the pool's type: its hk of all layers, hv
  // of all layers, and inputs of the convolutions. They are those of this moment in the order of
  // the backend's work, and come while it goes on: the state may change or be released at once.
  // import rounds to nearest even, so what was exported from the type comes back exactly; it throws
  // unless the size is right.
  HostFloats export_state(const StateHandle& state);
  void import_state(const HostFloats& floats, const StateHandle& state);

  // A layer's part of the arrays.
  void* hk(int64_t layer) const { return parts_[0].at(layer * capacity_); }
  void* hv(int64_t layer) const { return parts_[1].at(layer * capacity_); }
  // Null where the model has no short convolutions.
  float* conv(int64_t layer) const {
    return parts_[2].count > 0 ? static_cast<float*>(parts_[2].at(layer * capacity_)) : nullptr;
  }

 private:
  friend class StateHandle;

  // An array [L, states, count].
  struct Part {
    DType type;
    int64_t count;
    Buffer buffer = {};

    void* at(int64_t row) const {
      return static_cast<std::byte*>(buffer.data()) +
             row * count * static_cast<int64_t>(dtype_bytes(type));
    }
  };

  void release(int32_t index);
  void fill(int32_t index, float value);
  Slices slices(const Part& part, int32_t index) const;
  int64_t floats() const;  // of a state
  // A state to or from whole_.
  void gather(int32_t index);
  void scatter(int32_t index);

  Backend& backend_;
  int64_t capacity_;
  int64_t layers_;
  int64_t state_bytes_;
  std::array<Part, 3> parts_;  // hk, hv, inputs of the convolutions
  Buffer whole_;               // a state as floats, on its way
  std::vector<int32_t> free_;
};

}  // namespace gsa
