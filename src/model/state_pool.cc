#include "model/state_pool.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/error.h"
#include "kernels/half.h"

namespace gsa {
namespace {

constexpr int64_t kAlign = 64;
constexpr int64_t kFloat = sizeof(float);

template <auto kConvert, typename In, typename Out>
void convert(const In* in, int64_t count, Out* out) {
  std::transform(in, in + count, out, [](In x) { return kConvert(x); });
}

// `count` numbers of 16 bits as floats, and back.
void widen(const std::byte* stored, DType type, int64_t count, float* out) {
  const auto* bits = reinterpret_cast<const uint16_t*>(stored);
  type == DType::kF16 ? convert<f16_to_f32>(bits, count, out)
                      : convert<bf16_to_f32>(bits, count, out);
}

void narrow(const float* floats, DType type, int64_t count, std::byte* out) {
  auto* bits = reinterpret_cast<uint16_t*>(out);
  type == DType::kF16 ? convert<f32_to_f16>(floats, count, bits)
                      : convert<f32_to_bf16>(floats, count, bits);
}

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

std::vector<float> StatePool::export_state(const StateHandle& state) {
  std::vector<float> floats(memory_elements() + layers_ * conv_floats_);
  if (type_ == DType::kF32) {
    backend_.download(at(state.index()), state_bytes_, floats.data());
    return floats;
  }
  std::vector<std::byte> stored(state_bytes_);
  backend_.download(at(state.index()), state_bytes_, stored.data());
  widen(stored.data(), type_, memory_elements(), floats.data());
  std::memcpy(floats.data() + memory_elements(), stored.data() + conv_offset(),
              state_bytes_ - conv_offset());
  return floats;
}

void StatePool::import_state(const std::vector<float>& floats, const StateHandle& state) {
  const int64_t expected = memory_elements() + layers_ * conv_floats_;
  if (static_cast<int64_t>(floats.size()) != expected) {
    throw Error("a state of {} floats was given, this model's have {}", floats.size(), expected);
  }
  if (type_ == DType::kF32) return backend_.upload(floats.data(), state_bytes_, at(state.index()));
  std::vector<std::byte> stored(state_bytes_);
  narrow(floats.data(), type_, memory_elements(), stored.data());
  std::memcpy(stored.data() + conv_offset(), floats.data() + memory_elements(),
              state_bytes_ - conv_offset());
  backend_.upload(stored.data(), state_bytes_, at(state.index()));
}

int64_t StatePool::memory_elements() const { return layers_ * (hk_elements_ + hv_elements_); }

int64_t StatePool::conv_offset() const { return state_bytes_ - layers_ * conv_floats_ * kFloat; }

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
