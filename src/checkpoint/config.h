#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/shape.h"
#include "kernels/tensor.h"

namespace gsa {

std::string_view feature_map_name(FeatureMap map);

// A GSA model's hyperparameters, every default filled in. Letters as in design: D hidden, L layers,
// N vocabulary, F feed-forward, H query heads, G key/value heads, K key dim, V value dim, M slots.
struct GsaConfig {
  int64_t hidden_size = 0;        // D
  int64_t num_layers = 0;         // L
  int64_t vocab_size = 0;         // N
  int64_t intermediate_size = 0;  // F
  int64_t num_heads = 0;          // H
  int64_t num_kv_heads = 0;       // G, divides H
  int64_t key_dim = 0;            // K, per head: int(D * expand_k) / H
  int64_t value_dim = 0;          // V, per head: int(D * expand_v) / H
  int64_t num_slots = 0;          // M
  FeatureMap feature_map = FeatureMap::kSwish;
  double gate_logit_normalizer = 8;
  double norm_eps = 1e-6;          // of every norm but the attention output's, which is 1e-5
  int64_t conv_size = 0;           // width of the short convolutions; 0 where the model has none
  bool elementwise_affine = true;  // the attention output's norm has a weight
  bool tie_word_embeddings = false;
  int64_t bos_token_id = -1;           // -1: none
  std::vector<int64_t> eos_token_ids;  // may be empty

  // Rows of q, k, v and f, stacked in that order in the matrix `layers.i.qkvf`.
  int64_t q_rows() const { return num_heads * key_dim; }
  int64_t k_rows() const { return num_kv_heads * key_dim; }
  int64_t v_rows() const { return num_kv_heads * value_dim; }
  int64_t f_rows() const { return num_kv_heads * num_slots; }
  int64_t qkvf_rows() const { return q_rows() + k_rows() + v_rows() + f_rows(); }
  int64_t attention_width() const { return num_heads * value_dim; }
  // Channels of the short convolutions: the q, k and v rows.
  int64_t conv_channels() const { return q_rows() + k_rows() + v_rows(); }
  // Inputs that a layer's short convolutions keep of a sequence; 0 without them.
  int64_t conv_inputs() const { return conv_size > 0 ? (conv_size - 1) * conv_channels() : 0; }
  MixShape mix_shape() const { return {num_heads, num_kv_heads, key_dim, value_dim, num_slots}; }

  // Bytes of one sequence's state whose memories have this type: L*G*M*(K+V)*4, or half of that
  // with 16 bits, plus, for a model with short convolutions, L*conv_inputs()*4.
  int64_t state_bytes(DType type = DType::kF32) const;
  // Elements of its memories.
  int64_t memory_elements() const {
    return num_layers * num_kv_heads * num_slots * (key_dim + value_dim);
  }

  // Weights, the embedding counted once when tied.
  int64_t parameters() const;

  bool operator==(const GsaConfig&) const = default;
};

// Reads config.json as flash-linear-attention writes it, fills in the defaults and checks every
// field's type and range. `name` stands for the file in errors. Throws gsa::Error naming the field.
// Unknown fields are ignored; `attn` (unless null) and `attnres_block_size` (unless null) are
// refused, model_type other than "gsa" too.
GsaConfig parse_hf_config(std::string_view json, const std::string& name);

// The normalised form stored as `gsa.config` in a converted checkpoint; keys sorted, so equal
// configs give equal bytes. parse_normalized_config checks as strictly.
std::string normalized_config(const GsaConfig& config);
GsaConfig parse_normalized_config(std::string_view json, const std::string& name);

}  // namespace gsa
