#include "model/state_pool.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>

#include "kernels/error.h"

namespace gsa {

StateHandle& StateHandle::operator=(StateHandle&& other) noexcept {
  if (this != &other) {
    reset();
    pool_ = std::exchange(other.pool_, nullptr);
    index_ = std::exchange(other.index_, -1);
  }
  return *this;
}

void StateHandle::reset() {
  if (pool_ != nullptr) pool_->release(index_);
  pool_ = nullptr;
  index_ = -1;
}

StatePool::StatePool(const GsaConfig& config, Backend& backend, int64_t capacity, DType type)
    : backend_(backend),
      capacity_(capacity),
      layers_(config.num_layers),
      state_bytes_(config.state_bytes(type)),
      parts_{Part{type, config.num_kv_heads * config.key_dim * config.num_slots},
             Part{type, config.num_kv_heads * config.num_slots * config.value_dim},
             Part{DType::kF32, config.conv_inputs()}} {
  assert(std::find(std::begin(kStateTypes), std::end(kStateTypes), type) != std::end(kStateTypes));
  assert(config.memory_elements() == layers_ * (parts_[0].count + parts_[1].count));
  if (capacity < 1) throw Error("the state pool needs room for at least one state");
  try {
    for (Part& part : parts_) {
      part.buffer = backend.allocate(layers_ * capacity * part.count * dtype_bytes(part.type));
    }
    whole_ = backend.allocate(config.state_bytes(DType::kF32));
  } catch (const Error& error) {
    throw Error("{} states of {:.2f} MiB each do not fit: {}", capacity, state_bytes() / 0x1p20,
                error.what());
  }
  for (int64_t i = capacity; i > 0; --i) free_.push_back(static_cast<int32_t>(i - 1));
}

std::optional<StateHandle> StatePool::acquire() {
  if (free_.empty()) return std::nullopt;
  StateHandle state(this, free_.back());
  free_.pop_back();
  fill(state.index(), 0.0f);
  return state;
}

void StatePool::release(int32_t index) {
#ifndef NDEBUG
  // Whoever still reads a released state reads NaN.
  fill(index, std::numeric_limits<float>::quiet_NaN());
#endif
  free_.push_back(index);
}

void StatePool::copy(const StateHandle& from, const StateHandle& to) {
  gather(from.index());
  scatter(to.index());
}

HostFloats StatePool::export_state(const StateHandle& state) {
  gather(state.index());
  return backend_.copy_out(whole_.f32(), floats());
}

void StatePool::import_state(const HostFloats& given, const StateHandle& state) {
  if (static_cast<int64_t>(given.size()) != floats()) {
    throw Error("a state of {} floats was given, this model's have {}", given.size(), floats());
  }
  backend_.copy_in(given, whole_.f32());
  scatter(state.index());
}

int64_t StatePool::floats() const { return static_cast<int64_t>(whole_.bytes() / sizeof(float)); }

Slices StatePool::slices(const Part& part, int32_t index) const {
  return {.data = part.at(index),
          .type = part.type,
          .rows = layers_,
          .count = part.count,
          .pitch = capacity_ * part.count};
}

void StatePool::fill(int32_t index, float value) {
  for (const Part& part : parts_) backend_.fill(slices(part, index), value);
}

void StatePool::gather(int32_t index) {
  float* to = whole_.f32();
  for (const Part& part : parts_) {
    backend_.gather(slices(part, index), to);
    to += layers_ * part.count;
  }
}

void StatePool::scatter(int32_t index) {
  const float* from = whole_.f32();
  for (const Part& part : parts_) {
    backend_.scatter(from, slices(part, index));
    from += layers_ * part.count;
  }
}

}  // namespace gsa
