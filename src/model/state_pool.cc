#include "model/state_pool.h"

#include <cassert>
#include <limits>
#include <utility>

#include "kernels/error.h"

namespace gsa {
namespace {

constexpr int64_t kAlignFloats = 16;

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

StatePool::StatePool(const GsaConfig& config, Backend& backend, int64_t capacity)
    : backend_(backend),
      capacity_(capacity),
      hk_floats_(config.num_kv_heads * config.key_dim * config.num_slots),
      hv_floats_(config.num_kv_heads * config.num_slots * config.value_dim),
      conv_floats_(config.conv_size > 0 ? (config.conv_size - 1) * config.conv_channels() : 0),
      layers_(config.num_layers),
      state_floats_(config.state_bytes() / static_cast<int64_t>(sizeof(float))),
      stride_((state_floats_ + kAlignFloats - 1) / kAlignFloats * kAlignFloats) {
  assert(state_floats_ == layers_ * (hk_floats_ + hv_floats_ + conv_floats_));
  if (capacity < 1) throw Error("the state pool needs room for at least one state");
  try {
    buffer_ = backend.allocate(capacity * stride_ * sizeof(float));
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
  backend_.fill(at(state), state_floats_, 0.0f);
  return state;
}

void StatePool::release(int32_t index) {
#ifndef NDEBUG
  // Whoever still reads a released state reads NaN.
  backend_.fill(buffer_.f32() + index * stride_, state_floats_,
                std::numeric_limits<float>::quiet_NaN());
#endif
  free_.push_back(index);
}

void StatePool::copy(const StateHandle& from, const StateHandle& to) {
  backend_.copy(at(from), state_bytes(), at(to));
}

std::vector<float> StatePool::export_state(const StateHandle& state) {
  std::vector<float> floats(state_floats_);
  backend_.download(at(state), state_bytes(), floats.data());
  return floats;
}

void StatePool::import_state(const std::vector<float>& floats, const StateHandle& state) {
  if (static_cast<int64_t>(floats.size()) != state_floats_) {
    throw Error("a state of {} floats was given, this model's have {}", floats.size(),
                state_floats_);
  }
  backend_.upload(floats.data(), state_bytes(), at(state));
}

float* StatePool::hk(int64_t layer) const { return buffer_.f32() + layer * hk_floats_; }

float* StatePool::hv(int64_t layer) const { return hk(layers_) + layer * hv_floats_; }

float* StatePool::conv(int64_t layer) const {
  return conv_floats_ == 0 ? nullptr : hv(layers_) + layer * conv_floats_;
}

}  // namespace gsa
