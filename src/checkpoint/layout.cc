#include "checkpoint/layout.h"

#include <fmt/format.h>

namespace gsa {
namespace {

void add_attention(const GsaConfig& c, DType type, const std::string& to, const std::string& from,
                   std::vector<LayoutTensor>& list) {
  const int64_t D = c.hidden_size, K = c.key_dim;
  list.push_back({{to + "attn_norm", DType::kF32, {D}}, {{from + "attn_norm.weight", {D}}}});
  list.push_back({{to + "qkvf", type, {c.qkvf_rows(), D}},
                  {{from + "attn.q_proj.weight", {c.q_rows(), D}},
                   {from + "attn.k_proj.weight", {c.k_rows(), D}},
                   {from + "attn.v_proj.weight", {c.v_rows(), D}},
                   {from + "attn.f_proj.weight", {c.f_rows(), D}}},
                  true});
  if (c.conv_size > 0) {
    list.push_back({{to + "conv", DType::kF32, {c.conv_channels(), c.conv_size}},
                    {{from + "attn.q_conv1d.weight", {c.q_rows(), 1, c.conv_size}},
                     {from + "attn.k_conv1d.weight", {c.k_rows(), 1, c.conv_size}},
                     {from + "attn.v_conv1d.weight", {c.v_rows(), 1, c.conv_size}}}});
  }
  if (c.feature_map == FeatureMap::kT2R) {
    list.push_back({{to + "feature_map", type, {K, K}},
                    {{from + "attn.feature_map.layer.weight", {K, K}}},
                    true});
  }
  if (c.elementwise_affine) {
    list.push_back({{to + "g_norm", DType::kF32, {c.attention_width()}},
                    {{from + "attn.g_norm.weight", {c.attention_width()}}}});
  }
  list.push_back({{to + "o_proj", type, {D, c.attention_width()}},
                  {{from + "attn.o_proj.weight", {D, c.attention_width()}}},
                  true});
}

void add_mlp(const GsaConfig& c, DType type, bool stacked_gate, const std::string& to,
             const std::string& from, std::vector<LayoutTensor>& list) {
  const int64_t D = c.hidden_size, F = c.intermediate_size;
  list.push_back({{to + "mlp_norm", DType::kF32, {D}}, {{from + "mlp_norm.weight", {D}}}});
  std::vector<SourceTensor> gate_up = {{from + "mlp.gate_proj.weight", {F, D}},
                                       {from + "mlp.up_proj.weight", {F, D}}};
  if (stacked_gate) gate_up = {{from + "mlp.gate_proj.weight", {2 * F, D}}};
  list.push_back({{to + "gate_up", type, {2 * F, D}}, std::move(gate_up), true});
  list.push_back({{to + "down", type, {D, F}}, {{from + "mlp.down_proj.weight", {D, F}}}, true});
}

}  // namespace

std::vector<LayoutTensor> checkpoint_layout(const GsaConfig& c, DType type, bool stacked_gate) {
  const int64_t D = c.hidden_size, N = c.vocab_size;
  std::vector<LayoutTensor> list;
  list.push_back({{"embeddings", type, {N, D}}, {{"model.embeddings.weight", {N, D}}}, true});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string to = fmt::format("layers.{}.", i);
    const std::string from = "model." + to;
    add_attention(c, type, to, from, list);
    add_mlp(c, type, stacked_gate, to, from, list);
  }
  list.push_back({{"norm", DType::kF32, {D}}, {{"model.norm.weight", {D}}}});
  if (!c.tie_word_embeddings) {
    list.push_back({{"lm_head", type, {N, D}}, {{"lm_head.weight", {N, D}}}, true});
  }
  return list;
}

}  // namespace gsa
