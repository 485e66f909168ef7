#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/half.h"
#include "kernels/quantized.h"
#include "kernels/shape.h"
#include "kernels/tensor.h"

// The operations of a GSA model written once more in double precision, from the equations of arXiv
// 2409.07146 as the training library applies them.
namespace gsa::test {

using Doubles = std::vector<double>;

// A stored tensor in double precision.
inline Doubles widen(const TensorView& view) {
  Doubles out(view.elements());
  if (is_quantized(view.dtype)) {
    const int64_t columns = view.shape[1];
    for (int64_t i = 0; i < view.elements(); ++i) {
      const auto* row = static_cast<const std::byte*>(view.rows(i / columns, 1).data);
      out[i] = QuantizedRow::value(row, view.dtype, columns, i % columns);
    }
    return out;
  }
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

// x rounded to nearest even, as this type stores it; of float32 nothing is rounded.
inline double stored_as(DType type, double x) {
  if (type == DType::kF16) return f16_to_f32(f32_to_f16(static_cast<float>(x)));
  if (type == DType::kBF16) return bf16_to_f32(f32_to_bf16(static_cast<float>(x)));
  return x;
}

// What a type keeps of values that are stored in it.
inline Doubles stored(DType type, Doubles values) {
  for (double& v : values) v = stored_as(type, v);
  return values;
}

inline double silu(double x) { return x / (1 + std::exp(-x)); }

// y = W x. Four sums a row, which a processor can add up side by side.
inline Doubles product(const Doubles& weight, const Doubles& x) {
  const size_t columns = x.size(), fours = columns / 4 * 4;
  Doubles y(weight.size() / columns);
  for (size_t r = 0; r < y.size(); ++r) {
    const double* w = weight.data() + r * columns;
    double sums[4] = {};
    for (size_t c = 0; c < fours; c += 4) {
      for (size_t i = 0; i < 4; ++i) sums[i] += w[c + i] * x[c + i];
    }
    for (size_t c = fours; c < columns; ++c) sums[0] += w[c] * x[c];
    y[r] = sums[0] + sums[1] + sums[2] + sums[3];
  }
  return y;
}
inline Doubles product(const TensorView& weight, const Doubles& x) {
  return product(widen(weight), x);
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

// What gate, up and down make of a normed x, where activations are stored as `type` on their way
// (kF32: as they are), and what comes out of gate and up as `type_between`.
inline Doubles gated_mlp(const Doubles& gate_up, const Doubles& down, const Doubles& normed,
                         DType type, DType type_between) {
  const Doubles both = stored(type_between, product(gate_up, stored(type, normed)));
  const size_t F = both.size() / 2;
  Doubles hidden(F);
  for (size_t f = 0; f < F; ++f) hidden[f] = silu(both[f]) * both[F + f];
  return product(down, stored(type, hidden));
}

// One token of the short convolutions over the first columns of qkvf: `inputs` are the last ones,
// as many as the width, oldest first; this token's is added.
inline void convolve(const TensorView& weight, std::vector<Doubles>& inputs, Doubles& qkvf) {
  const Doubles w = widen(weight);
  const int64_t channels = weight.shape[0], width = weight.shape[1];
  inputs.erase(inputs.begin());
  inputs.emplace_back(qkvf.begin(), qkvf.begin() + channels);
  for (int64_t ch = 0; ch < channels; ++ch) {
    double sum = 0;
    for (int64_t j = 0; j < width; ++j) sum += w[ch * width + j] * inputs[j][ch];
    qkvf[ch] = silu(sum);
  }
}

// The parts of a recurrence that are the same for every token.
struct MixEquation {
  MixShape shape;
  FeatureMap feature_map = FeatureMap::kSwish;
  TensorView feature_weight;
  double normalizer = 8;
  DType state_type = DType::kF32;  // what every write of a memory is rounded to

  Doubles phi(Doubles head) const {
    if (feature_map == FeatureMap::kT2R) head = product(feature_weight, head);
    for (double& v : head) v = feature_map == FeatureMap::kSwish ? silu(v) : std::max(v, 0.0);
    return head;
  }

  // One token, from the projections to the input of the output norm; the memories hk [G,K,M] and
  // hv [G,M,V] take it in.
  Doubles step(const Doubles& qkvf, double* hk, double* hv) const {
    const auto [H, G, K, V, M] = shape;
    const double* k = qkvf.data() + H * K;
    const double* v = k + G * K;
    const double* f = v + G * V;
    Doubles out;
    for (int64_t g = 0; g < G; ++g, hk += K * M, hv += M * V) {
      write(phi(Doubles(k + g * K, k + (g + 1) * K)), v + g * V, f + g * M, hk, hv);
      for (int64_t h = g * (H / G); h < (g + 1) * (H / G); ++h) {
        const Doubles o =
            read(phi(Doubles(qkvf.begin() + h * K, qkvf.begin() + (h + 1) * K)), hk, hv);
        for (double value : o) out.push_back(silu(value));
      }
    }
    return out;
  }

 private:
  void write(const Doubles& k, const double* v, const double* f, double* hk, double* hv) const {
    const auto [H, G, K, V, M] = shape;
    Doubles value(v, v + V);
    for (double& x : value) x = silu(x);
    for (int64_t m = 0; m < M; ++m) {
      const double keep = std::exp(-std::log1p(std::exp(-f[m])) / normalizer);
      const auto update = [&](double& memory, double written) {
        memory = stored_as(state_type, memory * keep + written * (1 - keep));
      };
      for (int64_t i = 0; i < K; ++i) update(hk[i * M + m], k[i]);
      for (int64_t i = 0; i < V; ++i) update(hv[m * V + i], value[i]);
    }
  }

  Doubles read(const Doubles& q, const double* hk, const double* hv) const {
    const auto [H, G, K, V, M] = shape;
    Doubles p(M, 0), o(V, 0);
    for (int64_t i = 0; i < K; ++i) {
      for (int64_t m = 0; m < M; ++m) p[m] += q[i] * hk[i * M + m];
    }
    double sum = 0;
    const double max = *std::max_element(p.begin(), p.end());
    for (double& x : p) sum += x = std::exp(x - max);
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t i = 0; i < V; ++i) o[i] += p[m] / sum * hv[m * V + i];
    }
    return o;
  }
};

}  // namespace gsa::test
