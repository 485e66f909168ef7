#include "model/random_weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/error.h"
#include "kernels/half.h"

namespace gsa {
namespace {

constexpr float kHalfWidth = 0.0346f;  // sqrt(3) * 0.02

// Hands out 64-byte aligned pieces of one mapping, or only counts them.
class Arena {
 public:
  TensorView take(DType dtype, std::initializer_list<int64_t> shape) {
    TensorView view(base_ == nullptr ? nullptr : base_ + used_, dtype, shape);
    used_ += (view.bytes() + 63) / 64 * 64;
    return view;
  }

  std::shared_ptr<const void> map() {
    const size_t bytes = used_;
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) {
      throw Error("cannot allocate {:.2f} GiB for random weights", bytes / 0x1p30);
    }
    base_ = static_cast<std::byte*>(data);
    used_ = 0;
    return std::shared_ptr<const void>(data, [bytes](void* p) { munmap(p, bytes); });
  }

 private:
  std::byte* base_ = nullptr;
  size_t used_ = 0;
};

// A block of random numbers, repeated at changing offsets: the values matter little, the time to
// make billions of them does.
class Filler {
 public:
  Filler(DType type, uint64_t seed) : type_(type), block_(kElements * dtype_bytes(type)) {
    for (int64_t i = 0; i < kElements; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      const float value = (static_cast<float>(seed >> 40) * 0x1p-23f - 1.0f) * kHalfWidth;
      std::byte* at = block_.data() + i * dtype_bytes(type);
      if (type == DType::kF32) {
        std::memcpy(at, &value, sizeof(value));
      } else {
        const uint16_t bits = type == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
        std::memcpy(at, &bits, sizeof(bits));
      }
    }
  }

  void fill(const TensorView& view) {
    std::byte* to = static_cast<std::byte*>(view.data);
    for (size_t done = 0; done < view.bytes();) {
      const size_t from = (offset_ += 97) % kElements * dtype_bytes(type_);
      const size_t n = std::min(view.bytes() - done, block_.size() - from);
      std::memcpy(to + done, block_.data() + from, n);
      done += n;
    }
  }

 private:
  static constexpr int64_t kElements = 1 << 20;
  DType type_;
  std::vector<std::byte> block_;
  uint64_t offset_ = 0;
};

ModelWeights lay_out(const GsaConfig& c, DType type, Arena& arena) {
  const int64_t D = c.hidden_size;
  const auto norm = [&](int64_t n) { return arena.take(DType::kF32, {n}); };
  ModelWeights weights;
  weights.embeddings = arena.take(type, {c.vocab_size, D});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    LayerWeights w;
    w.attn_norm = norm(D);
    w.qkvf = arena.take(type, {c.qkvf_rows(), D});
    if (c.conv_size > 0) w.conv = arena.take(DType::kF32, {c.conv_channels(), c.conv_size});
    if (c.feature_map == FeatureMap::kT2R) w.feature_map = arena.take(type, {c.key_dim, c.key_dim});
    if (c.elementwise_affine) w.g_norm = norm(c.attention_width());
    w.o_proj = arena.take(type, {D, c.attention_width()});
    w.mlp_norm = norm(D);
    w.gate_up = arena.take(type, {2 * c.intermediate_size, D});
    w.down = arena.take(type, {D, c.intermediate_size});
    weights.layers.push_back(w);
  }
  weights.norm = norm(D);
  weights.lm_head =
      c.tie_word_embeddings ? weights.embeddings : arena.take(type, {c.vocab_size, D});
  return weights;
}

}  // namespace

RandomWeights make_random_weights(const GsaConfig& config, DType type, uint64_t seed) {
  Arena arena;
  lay_out(config, type, arena);
  RandomWeights result;
  result.storage = arena.map();
  result.weights = lay_out(config, type, arena);
  Filler filler(type, seed), conv_filler(DType::kF32, seed);
  const auto ones = [](const TensorView& v) {
    if (v) std::fill_n(v.f32(), v.elements(), 1.0f);
  };
  const auto random = [&](const TensorView& v) {
    if (v) filler.fill(v);
  };
  random(result.weights.embeddings);
  for (LayerWeights& w : result.weights.layers) {
    for (const TensorView& v : {w.qkvf, w.feature_map, w.o_proj, w.gate_up, w.down}) random(v);
    for (const TensorView& v : {w.attn_norm, w.g_norm, w.mlp_norm}) ones(v);
    if (w.conv) conv_filler.fill(w.conv);
  }
  ones(result.weights.norm);
  if (!config.tie_word_embeddings) random(result.weights.lm_head);
  return result;
}

}  // namespace gsa
