#include "checkpoint/layout.h"

#include <fmt/format.h>

namespace gsa {
namespace {

void add_attention(const GsaConfig& c, const MatrixTypes& types, const std::string& to,
                   const std::string& from, std::vector<LayoutTensor>& list) {
  const int64_t D = c.hidden_size, K = c.key_dim;
  list.push_back({{to + "attn_norm", DType::kF32, {D}}, {{from + "attn_norm.weight", {D}}}});
  std::vector<SourceTensor> qkvf = {{from + "attn.q_proj.weight", {c.q_rows(), D}},
                                    {from + "attn.k_proj.weight", {c.k_rows(), D}},
                                    {from + "attn.v_proj.weight", {c.v_rows(), D}}};
  const SourceTensor f = {from + "attn.f_proj.weight", {c.f_rows(), D}};
  if (is_quantized(types.type)) {
    const int64_t rows = c.qkvf_rows() - c.f_rows();
    list.push_back({{to + "qkv", types.type, {rows, D}}, std::move(qkvf), true});
    list.push_back({{to + "f", types.fine, {c.f_rows(), D}}, {f}, true});
  } else {
    qkvf.push_back(f);
    list.push_back({{to + "qkvf", types.type, {c.qkvf_rows(), D}}, std::move(qkvf), true});
  }
  if (c.conv_size > 0) {
    list.push_back({{to + "conv", DType::kF32, {c.conv_channels(), c.conv_size}},
                    {{from + "attn.q_conv1d.weight", {c.q_rows(), 1, c.conv_size}},
                     {from + "attn.k_conv1d.weight", {c.k_rows(), 1, c.conv_size}},
                     {from + "attn.v_conv1d.weight", {c.v_rows(), 1, c.conv_size}}}});
  }
  if (c.feature_map == FeatureMap::kT2R) {
    list.push_back({{to + "feature_map", types.fine, {K, K}},
                    {{from + "attn.feature_map.layer.weight", {K, K}}},
                    true});
  }
  if (c.elementwise_affine) {
    list.push_back({{to + "g_norm", DType::kF32, {c.attention_width()}},
                    {{from + "attn.g_norm.weight", {c.attention_width()}}}});
  }
  list.push_back({{to + "o_proj", types.type, {D, c.attention_width()}},
                  {{from + "attn.o_proj.weight", {D, c.attention_width()}}},
                  true});
}

void add_mlp(const GsaConfig& c, const MatrixTypes& types, bool stacked_gate, const std::string& to,
             const std::string& from, std::vector<LayoutTensor>& list) {
  const int64_t D = c.hidden_size, F = c.intermediate_size;
  list.push_back({{to + "mlp_norm", DType::kF32, {D}}, {{from + "mlp_norm.weight", {D}}}});
  std::vector<SourceTensor> gate_up = {{from + "mlp.gate_proj.weight", {F, D}},
                                       {from + "mlp.up_proj.weight", {F, D}}};
  if (stacked_gate) gate_up = {{from + "mlp.gate_proj.weight", {2 * F, D}}};
  list.push_back({{to + "gate_up", types.type, {2 * F, D}}, std::move(gate_up), true});
  list.push_back(
      {{to + "down", types.type, {D, F}}, {{from + "mlp.down_proj.weight", {D, F}}}, true});
}

}  // namespace

SafetensorsWriter::Entry LayoutTensor::stored() const {
  if (!is_quantized(entry.dtype)) return entry;
  const auto bytes = static_cast<int64_t>(row_bytes(entry.dtype, entry.shape[1]));
  return {entry.name, DType::kU8, {entry.shape[0], bytes}};
}

std::vector<LayoutTensor> checkpoint_layout(const GsaConfig& c, const MatrixTypes& types,
                                            bool stacked_gate) {
  const int64_t D = c.hidden_size, N = c.vocab_size;
  std::vector<LayoutTensor> list;
  list.push_back({{"embeddings", types.fine, {N, D}}, {{"model.embeddings.weight", {N, D}}}, true});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    const std::string to = fmt::format("layers.{}.", i);
    const std::string from = "model." + to;
    add_attention(c, types, to, from, list);
    add_mlp(c, types, stacked_gate, to, from, list);
  }
  list.push_back({{"norm", DType::kF32, {D}}, {{"model.norm.weight", {D}}}});
  const char* head = c.tie_word_embeddings ? "model.embeddings.weight" : "lm_head.weight";
  if (!c.tie_word_embeddings || is_quantized(types.type)) {
    list.push_back({{"lm_head", types.type, {N, D}}, {{head, {N, D}}}, true});
  }
  return list;
}

}  // namespace gsa
