#include "model/random_weights.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/error.h"
#include "kernels/half.h"
#include "kernels/quantized.h"

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
    // As files have them on file systems with large folios; a wish, which may be refused.
    madvise(data, bytes, MADV_HUGEPAGE);
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
  Filler(DType type, uint64_t seed)
      : type_(type), unit_(is_quantized(type) ? 1 : dtype_bytes(type)), block_(kUnits * unit_) {
    for (size_t i = 0; i < kUnits; ++i) {
      seed = seed * 6364136223846793005u + 1442695040888963407u;
      put((static_cast<float>(seed >> 40) * 0x1p-23f - 1.0f) * kHalfWidth, seed >> 56,
          block_.data() + i * unit_);
    }
  }

  void fill(const TensorView& view) {
    std::byte* to = static_cast<std::byte*>(view.data);
    for (size_t done = 0; done < view.bytes();) {
      const size_t from = (offset_ += 97) % kUnits * unit_;
      const size_t n = std::min(view.bytes() - done, block_.size() - from);
      std::memcpy(to + done, block_.data() + from, n);
      done += n;
    }
    if (is_quantized(type_)) fill_scales(view);
  }

 private:
  static constexpr size_t kUnits = 1 << 20;

  // An element, or a byte of integers.
  void put(float value, uint64_t bits, std::byte* at) const {
    if (type_ == DType::kF32) {
      std::memcpy(at, &value, sizeof(value));
    } else if (is_quantized(type_)) {
      *at = static_cast<std::byte>(type_ == DType::kQ8 && bits == 0x80 ? 0 : bits);
    } else {
      const uint16_t half = type_ == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
      std::memcpy(at, &half, sizeof(half));
    }
  }

  // So that all integers together span the range of the other types.
  void fill_scales(const TensorView& view) const {
    const int64_t columns = view.shape[1];
    const uint16_t scale = f32_to_f16(kHalfWidth / (type_ == DType::kQ8 ? 127.0f : 7.5f));
    const uint16_t minimum = f32_to_f16(-kHalfWidth);
    for (int64_t r = 0; r < view.shape[0]; ++r) {
      auto* row = static_cast<std::byte*>(view.rows(r, 1).data);
      for (int64_t g = 0; g < QuantizedRow::groups(columns); ++g) {
        const size_t at = g * sizeof(uint16_t);
        std::memcpy(row + QuantizedRow::scales_offset(type_, columns) + at, &scale, sizeof(scale));
        if (type_ != DType::kQ4) continue;
        std::memcpy(row + QuantizedRow::minima_offset(type_, columns) + at, &minimum,
                    sizeof(minimum));
      }
    }
  }

  DType type_;
  size_t unit_;
  std::vector<std::byte> block_;
  uint64_t offset_ = 0;
};

ModelWeights lay_out(const GsaConfig& c, DType type, Arena& arena) {
  const int64_t D = c.hidden_size;
  const bool quantized = is_quantized(type);
  const DType fine = quantized ? DType::kBF16 : type;
  const auto norm = [&](int64_t n) { return arena.take(DType::kF32, {n}); };
  ModelWeights weights;
  weights.embeddings = arena.take(fine, {c.vocab_size, D});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    LayerWeights w;
    w.attn_norm = norm(D);
    w.qkvf = arena.take(type, {c.qkvf_rows() - (quantized ? c.f_rows() : 0), D});
    if (quantized) w.f = arena.take(fine, {c.f_rows(), D});
    if (c.conv_size > 0) w.conv = arena.take(DType::kF32, {c.conv_channels(), c.conv_size});
    if (c.feature_map == FeatureMap::kT2R) {
      w.feature_map = arena.take(fine, {c.key_dim, c.key_dim});
    }
    if (c.elementwise_affine) w.g_norm = norm(c.attention_width());
    w.o_proj = arena.take(type, {D, c.attention_width()});
    w.mlp_norm = norm(D);
    w.gate_up = arena.take(type, {2 * c.intermediate_size, D});
    w.down = arena.take(type, {D, c.intermediate_size});
    weights.layers.push_back(w);
  }
  weights.norm = norm(D);
  const bool shared = c.tie_word_embeddings && !quantized;
  weights.lm_head = shared ? weights.embeddings : arena.take(type, {c.vocab_size, D});
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
  Filler fine_filler(is_quantized(type) ? DType::kBF16 : type, seed);
  const auto ones = [](const TensorView& v) {
    if (v) std::fill_n(v.f32(), v.elements(), 1.0f);
  };
  const auto random = [&](const TensorView& v) {
    if (v) (v.dtype == type ? filler : fine_filler).fill(v);
  };
  random(result.weights.embeddings);
  for (LayerWeights& w : result.weights.layers) {
    for (const TensorView& v : {w.qkvf, w.f, w.feature_map, w.o_proj, w.gate_up, w.down}) {
      random(v);
    }
    for (const TensorView& v : {w.attn_norm, w.g_norm, w.mlp_norm}) ones(v);
    if (w.conv) conv_filler.fill(w.conv);
  }
  ones(result.weights.norm);
  if (result.weights.lm_head.data != result.weights.embeddings.data) random(result.weights.lm_head);
  return result;
}

}  // namespace gsa
