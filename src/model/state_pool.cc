#include "model/state_pool.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <utility>

#include "kernels/error.h"

namespace gsa {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kFloat = sizeof(float);

}  // namespace

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
      type_(type),
      hk_elements_(config.num_kv_heads * config.key_dim * config.num_slots),
      hv_elements_(config.num_kv_heads * config.num_slots * config.value_dim),
      conv_floats_(config.conv_size > 0 ? (config.conv_size - 1) * config.conv_channels() : 0),
      layers_(config.num_layers),
      state_bytes_(config.state_bytes(type)),
      stride_bytes_((state_bytes_ + kAlign - 1) / kAlign * kAlign) {
  assert(std::find(std::begin(kStateTypes), std::end(kStateTypes), type) != std::end(kStateTypes));
  assert(config.memory_elements() == memory_elements());
  if (capacity < 1) throw Error("the state pool needs room for at least one state");
  try {
    buffer_ = backend.allocate(capacity * stride_bytes_);
    if (type != DType::kF32) wide_ = backend.allocate(state_floats() * kFloat);
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
  // Whoever still reads a released state reads NaN; as 16 bits, every second element is one.
  fill(index, std::numeric_limits<float>::quiet_NaN());
#endif
  free_.push_back(index);
}

void StatePool::fill(int32_t index, float value) {
  backend_.fill(reinterpret_cast<float*>(at(index)), state_bytes_ / kFloat, value);
}

void StatePool::copy(const StateHandle& from, const StateHandle& to) {
  backend_.copy(at(from.index()), state_bytes_, at(to.index()));
}

HostFloats StatePool::export_state(const StateHandle& state) {
  std::byte* stored = at(state.index());
  if (type_ == DType::kF32) {
    return backend_.copy_out(reinterpret_cast<const float*>(stored), state_floats());
  }
  backend_.widen(stored, type_, memory_elements(), wide_.f32());
  backend_.copy(stored + conv_offset(), conv_bytes(), wide_.f32() + memory_elements());
  return backend_.copy_out(wide_.f32(), state_floats());
}

void StatePool::import_state(const HostFloats& floats, const StateHandle& state) {
  if (static_cast<int64_t>(floats.size()) != state_floats()) {
    throw Error("a state of {} floats was given, this model's have {}", floats.size(),
                state_floats());
  }
  std::byte* stored = at(state.index());
  if (type_ == DType::kF32) return backend_.copy_in(floats, reinterpret_cast<float*>(stored));
  backend_.copy_in(floats, wide_.f32());
  backend_.narrow(wide_.f32(), type_, memory_elements(), stored);
  backend_.copy(wide_.f32() + memory_elements(), conv_bytes(), stored + conv_offset());
}

int64_t StatePool::memory_elements() const { return layers_ * (hk_elements_ + hv_elements_); }

int64_t StatePool::state_floats() const { return memory_elements() + layers_ * conv_floats_; }

int64_t StatePool::conv_bytes() const { return layers_ * conv_floats_ * kFloat; }

int64_t StatePool::conv_offset() const { return state_bytes_ - conv_bytes(); }

void* StatePool::hk(int64_t layer) const {
  return at(0) + layer * hk_elements_ * static_cast<int64_t>(dtype_bytes(type_));
}

void* StatePool::hv(int64_t layer) const {
  const int64_t before = layers_ * hk_elements_ + layer * hv_elements_;
  return at(0) + before * static_cast<int64_t>(dtype_bytes(type_));
}

float* StatePool::conv(int64_t layer) const {
  if (conv_floats_ == 0) return nullptr;
  return reinterpret_cast<float*>(at(0) + conv_offset()) + layer * conv_floats_;
}

}  // namespace gsa
