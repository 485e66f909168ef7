#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "tests/support/devices.h"
#include "tests/support/equations.h"

namespace gsa::test {

// The products of a step of so many rows on a device: their operands are stored as operand_type()
// says.
struct Products {
  std::string device = "cpu";
  int64_t rows = 1;
};

// The model token by token in double precision. The yardstick for shapes that no fixture covers.
// Copies share the weights.
class ReferenceModel {
 public:
  ReferenceModel(const GsaConfig& config, const ModelWeights& weights,
                 DType state_type = DType::kF32, const Products& products = {})
      : c_(config),
        w_(weights),
        state_type_(state_type),
        products_(products),
        layers_(config.num_layers) {
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
    Doubles x = widen(w_.embeddings.rows(token, 1));
    for (int64_t i = 0; i < c_.num_layers; ++i) {
      const LayerWeights& w = w_.layers[i];
      Memory& memory = layers_[i];
      const Doubles normed = rms_norm(x, w.attn_norm, c_.norm_eps);
      Doubles qkvf = multiply(w.qkvf, normed);
      if (w.f) {
        const Doubles f = multiply(w.f, normed);
        qkvf.insert(qkvf.end(), f.begin(), f.end());
      }
      if (c_.conv_size > 0) convolve(w.conv, memory.inputs, qkvf);
      const MixEquation mix{c_.mix_shape(), c_.feature_map, w.feature_map, c_.gate_logit_normalizer,
                            state_type_};
      const Doubles o = mix.step(qkvf, memory.hk.data(), memory.hv.data());
      add(multiply(w.o_proj, rms_norm(o, w.g_norm, 1e-5)), x);
      add(gated_mlp(
              matrix(w.gate_up), matrix(w.down), rms_norm(x, w.mlp_norm, c_.norm_eps),
              operands(w.gate_up),
              between_type(products_.device, w.gate_up.dtype, products_.rows, w.gate_up.shape[1])),
          x);
    }
    return multiply(w_.lm_head, rms_norm(x, w_.norm, c_.norm_eps));
  }

  // Logits after each of the tokens, one behind the other.
  Doubles logits(std::span<const int32_t> tokens) {
    Doubles all;
    for (int32_t token : tokens) {
      const Doubles row = step(token);
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }

 private:
  DType operands(const TensorView& weight) const {
    return operand_type(products_.device, weight.dtype, products_.rows, weight.shape[1]);
  }
  // As a product takes it.
  const Doubles& matrix(const TensorView& weight) {
    Doubles& values = (*matrices_)[weight.data];
    if (values.empty()) {
      values = stored(weight_type(products_.device, weight.dtype, products_.rows, weight.shape[1]),
                      widen(weight));
    }
    return values;
  }
  Doubles multiply(const TensorView& weight, const Doubles& x) {
    return product(matrix(weight), stored(operands(weight), x));
  }

  static void add(const Doubles& y, Doubles& x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  GsaConfig c_;
  ModelWeights w_;
  DType state_type_;
  Products products_;
  std::vector<Memory> layers_;
  std::shared_ptr<std::map<const void*, Doubles>> matrices_ =
      std::make_shared<std::map<const void*, Doubles>>();
};

}  // namespace gsa::test
