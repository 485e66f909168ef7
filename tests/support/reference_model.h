#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "kernels/half.h"

namespace gsa::test {

using Doubles = std::vector<double>;

// A stored tensor in double precision.
inline Doubles widen(const TensorView& view) {
  Doubles out(view.elements());
  for (size_t i = 0; i < out.size(); ++i) {
    if (view.dtype == DType::kF32) {
      out[i] = static_cast<const float*>(view.data)[i];
    } else {
      const uint16_t bits = static_cast<const uint16_t*>(view.data)[i];
      out[i] = view.dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    }
  }
  return out;
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }

// y = W x
inline Doubles product(const TensorView& weight, const Doubles& x) {
  const Doubles w = widen(weight);
  Doubles y(weight.shape[0], 0);
  for (size_t r = 0; r < y.size(); ++r) {
    for (size_t c = 0; c < x.size(); ++c) y[r] += w[r * x.size() + c] * x[c];
  }
  return y;
}

inline Doubles rms_norm(const Doubles& x, const TensorView& weight, double eps) {
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  const Doubles w = weight ? widen(weight) : Doubles(x.size(), 1);
  Doubles y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * w[i];
  return y;
}

// The model written once more, token by token in double precision, from the equations of
// arXiv 2409.07146 as the training library applies them. The yardstick for shapes that no fixture
// covers.
class ReferenceModel {
 public:
  ReferenceModel(const GsaConfig& config, const ModelWeights& weights)
      : c_(config), w_(weights), layers_(config.num_layers) {
    for (Memory& m : layers_) {
      m.hk.assign(c_.num_kv_heads * c_.key_dim * c_.num_slots, 0);
      m.hv.assign(c_.num_kv_heads * c_.num_slots * c_.value_dim, 0);
      m.inputs.assign(c_.conv_size, Doubles(c_.conv_channels(), 0));
    }
  }

  struct Memory {
    Doubles hk, hv;               // [G, K, M], [G, M, V]
    std::vector<Doubles> inputs;  // of the convolution, oldest first
  };
  const Memory& memory(int64_t layer) const { return layers_[layer]; }

  // Logits after one more token.
  Doubles step(int32_t token) {
    const int64_t D = c_.hidden_size;
    const Doubles table = widen(w_.embeddings);
    Doubles x(table.begin() + token * D, table.begin() + (token + 1) * D);
    for (int64_t i = 0; i < c_.num_layers; ++i) {
      const LayerWeights& w = w_.layers[i];
      Doubles qkvf = product(w.qkvf, rms_norm(x, w.attn_norm, c_.norm_eps));
      if (c_.conv_size > 0) convolve(w.conv, layers_[i], qkvf);
      Doubles o = mix(w, layers_[i], qkvf);
      for (double& v : o) v = silu(v);
      add(product(w.o_proj, rms_norm(o, w.g_norm, 1e-5)), x);
      const Doubles gate_up = product(w.gate_up, rms_norm(x, w.mlp_norm, c_.norm_eps));
      const int64_t F = c_.intermediate_size;
      Doubles hidden(F);
      for (int64_t f = 0; f < F; ++f) hidden[f] = silu(gate_up[f]) * gate_up[F + f];
      add(product(w.down, hidden), x);
    }
    return product(w_.lm_head, rms_norm(x, w_.norm, c_.norm_eps));
  }

 private:
  static void add(const Doubles& y, Doubles& x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  void convolve(const TensorView& weight, Memory& memory, Doubles& qkvf) const {
    const Doubles w = widen(weight);
    memory.inputs.erase(memory.inputs.begin());
    memory.inputs.emplace_back(qkvf.begin(), qkvf.begin() + c_.conv_channels());
    for (int64_t ch = 0; ch < c_.conv_channels(); ++ch) {
      double sum = 0;
      for (int64_t j = 0; j < c_.conv_size; ++j) {
        sum += w[ch * c_.conv_size + j] * memory.inputs[j][ch];
      }
      qkvf[ch] = silu(sum);
    }
  }

  Doubles phi(const LayerWeights& w, Doubles head) const {
    if (c_.feature_map == FeatureMap::kT2R) head = product(w.feature_map, head);
    for (double& v : head) v = c_.feature_map == FeatureMap::kSwish ? silu(v) : std::max(v, 0.0);
    return head;
  }

  Doubles mix(const LayerWeights& w, Memory& memory, const Doubles& qkvf) const {
    const int64_t H = c_.num_heads, G = c_.num_kv_heads, K = c_.key_dim, V = c_.value_dim,
                  M = c_.num_slots;
    const double* k_all = qkvf.data() + H * K;
    const double* v_all = k_all + G * K;
    const double* f_all = v_all + G * V;
    Doubles out;
    for (int64_t g = 0; g < G; ++g) {
      const Doubles k = phi(w, Doubles(k_all + g * K, k_all + (g + 1) * K));
      double* hk = memory.hk.data() + g * K * M;
      double* hv = memory.hv.data() + g * M * V;
      for (int64_t m = 0; m < M; ++m) {
        const double f = f_all[g * M + m];
        const double keep = std::exp(-std::log1p(std::exp(-f)) / c_.gate_logit_normalizer);
        for (int64_t i = 0; i < K; ++i) hk[i * M + m] = hk[i * M + m] * keep + k[i] * (1 - keep);
        for (int64_t i = 0; i < V; ++i) {
          hv[m * V + i] = hv[m * V + i] * keep + silu(v_all[g * V + i]) * (1 - keep);
        }
      }
      for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
        const Doubles q = phi(w, Doubles(qkvf.begin() + h * K, qkvf.begin() + (h + 1) * K));
        Doubles p(M, 0), o(V, 0);
        for (int64_t i = 0; i < K; ++i) {
          for (int64_t m = 0; m < M; ++m) p[m] += q[i] * hk[i * M + m];
        }
        double max = p[0], sum = 0;
        for (double v : p) max = std::max(max, v);
        for (double& v : p) sum += v = std::exp(v - max);
        for (int64_t m = 0; m < M; ++m) {
          for (int64_t i = 0; i < V; ++i) o[i] += p[m] / sum * hv[m * V + i];
        }
        out.insert(out.end(), o.begin(), o.end());
      }
    }
    return out;
  }

  GsaConfig c_;
  ModelWeights w_;
  std::vector<Memory> layers_;
};

}  // namespace gsa::test
