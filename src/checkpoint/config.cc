#include "checkpoint/config.h"

#include <cmath>

#include "checkpoint/json.h"
#include "kernels/error.h"

namespace gsa {
namespace {

// Far above every model, and small enough that no size computed from them overflows int64.
constexpr int64_t kMaxHidden = 1 << 18;
constexpr int64_t kMaxLayers = 1 << 12;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxHeads = 1 << 14;
constexpr int64_t kMaxWidth = 1 << 20;  // of H*K, H*V, G*M and F
constexpr int64_t kMaxSlots = 1 << 16;
constexpr int64_t kMaxConv = 1 << 8;

// Within the range of float, in which the model computes.
constexpr double kMinNormalizer = 1e-6, kMaxNormalizer = 1e6;
constexpr double kMinEps = 1e-30, kMaxEps = 1;
constexpr double kMinExpand = 1e-6, kMaxExpand = 1e3;

constexpr std::pair<FeatureMap, std::string_view> kFeatureMaps[] = {
    {FeatureMap::kSwish, "swish"}, {FeatureMap::kRelu, "relu"}, {FeatureMap::kT2R, "t2r"}};

FeatureMap parse_feature_map(const JsonObject& json, std::string_view key) {
  const std::string& text = json.string(key);
  for (const auto& [map, name] : kFeatureMaps) {
    if (text == name) return map;
  }
  json.refuse(key, "swish, relu or t2r");
}

// Checks what concerns several fields at once.
void check_together(const GsaConfig& c, const std::string& name) {
  if (c.num_heads % c.num_kv_heads != 0) {
    throw Error("{}: field \"num_kv_heads\" is {}, expected a divisor of num_heads, {}", name,
                c.num_kv_heads, c.num_heads);
  }
  const auto check_width = [&](std::string_view what, int64_t width) {
    if (width > kMaxWidth) {
      throw Error("{}: {} make {}, expected at most {}", name, what, width, kMaxWidth);
    }
  };
  check_width("num_heads times the key dim", c.q_rows());
  check_width("num_heads times the value dim", c.attention_width());
  check_width("num_kv_heads times num_slots", c.f_rows());
}

// Features of the training library that this engine does not run: refused by name.
void refuse_foreign(const JsonObject& json) {
  if (json.present("model_type") && json.at("model_type") != "gsa") {
    json.refuse("model_type", "gsa");
  }
  if (json.present("attn")) {
    json.refuse("attn", "null: hybrid models with softmax attention layers are not supported");
  }
  if (json.present("attnres_block_size")) {
    json.refuse("attnres_block_size", "null: attention residuals are not supported");
  }
  if (json.present("hidden_act") && json.at("hidden_act") != "swish" &&
      json.at("hidden_act") != "silu") {
    json.refuse("hidden_act", "swish or silu");
  }
}

// Dim per head of the q and k (`expand_k`) or v (`expand_v`) projections.
int64_t head_dim(const JsonObject& json, const char* expand_key, const GsaConfig& c) {
  const double expand = json.number_or(expand_key, kMinExpand, kMaxExpand, 1);
  const auto width = static_cast<int64_t>(static_cast<double>(c.hidden_size) * expand);
  if (width > kMaxWidth || width < c.num_heads || width % c.num_heads != 0) {
    throw Error(
        "{}: hidden_size {} and {} {} give a width of {}, expected a multiple of num_heads, {}, of "
        "at most {}",
        json.name(), c.hidden_size, expand_key, expand, width, c.num_heads, kMaxWidth);
  }
  return width / c.num_heads;
}

// The default of the training library: two thirds of hidden_size * hidden_ratio, rounded up to a
// multiple of 256.
int64_t default_intermediate_size(const JsonObject& json, const GsaConfig& c) {
  const double ratio = json.present("hidden_ratio") ? json.number("hidden_ratio", 1e-3, 1e3) : 4;
  const auto size = static_cast<int64_t>(static_cast<double>(c.hidden_size) * ratio * 2 / 3);
  const int64_t rounded = (size + 255) / 256 * 256;
  if (rounded < 1 || rounded > kMaxWidth) {
    throw Error(
        "{}: hidden_size {} and hidden_ratio {} give an intermediate size of {}, expected "
        "1 to {}",
        json.name(), c.hidden_size, ratio, rounded, kMaxWidth);
  }
  return rounded;
}

// A default that a small vocabulary does not reach is no token.
void read_hf_special_tokens(const JsonObject& json, GsaConfig& c) {
  const int64_t last = c.vocab_size - 1;
  if (json.absent("bos_token_id")) {
    c.bos_token_id = last >= 1 ? 1 : -1;
  } else {
    c.bos_token_id = json.optional_integer("bos_token_id", 0, last).value_or(-1);
  }
  if (json.absent("eos_token_id")) {
    if (last >= 2) c.eos_token_ids = {2};
  } else {
    c.eos_token_ids = json.integers("eos_token_id", 0, last);
  }
}

}  // namespace

std::string_view feature_map_name(FeatureMap map) {
  for (const auto& [value, name] : kFeatureMaps) {
    if (map == value) return name;
  }
  throw Error("unknown feature map {}", static_cast<int>(map));
}

int64_t GsaConfig::state_bytes(DType type) const {
  const int64_t memories = memory_elements() * static_cast<int64_t>(dtype_bytes(type));
  return memories + num_layers * conv_inputs() * static_cast<int64_t>(sizeof(float));
}

int64_t GsaConfig::parameters() const {
  const int64_t D = hidden_size;
  int64_t layer = qkvf_rows() * D + conv_channels() * conv_size + D * attention_width() +
                  3 * intermediate_size * D + 2 * D;
  if (feature_map == FeatureMap::kT2R) layer += key_dim * key_dim;
  if (elementwise_affine) layer += attention_width();
  return vocab_size * D * (tie_word_embeddings ? 1 : 2) + num_layers * layer + D;
}

GsaConfig parse_hf_config(std::string_view text, const std::string& name) {
  const nlohmann::json root = parse_json(text, name);
  const JsonObject json(root, name);
  refuse_foreign(json);
  GsaConfig c;
  c.hidden_size = json.integer("hidden_size", 1, kMaxHidden);
  c.num_layers = json.integer("num_hidden_layers", 1, kMaxLayers);
  c.vocab_size = json.integer("vocab_size", 1, kMaxVocab);
  c.num_heads = json.integer("num_heads", 1, kMaxHeads);
  c.num_kv_heads = json.optional_integer("num_kv_heads", 1, kMaxHeads).value_or(c.num_heads);
  c.key_dim = head_dim(json, "expand_k", c);
  c.value_dim = head_dim(json, "expand_v", c);
  // An absent num_slots and one that is null differ in the training library.
  c.num_slots = json.absent("num_slots")
                    ? 64
                    : json.optional_integer("num_slots", 1, kMaxSlots).value_or(c.key_dim);
  c.intermediate_size = json.present("intermediate_size")
                            ? json.integer("intermediate_size", 1, kMaxWidth)
                            : default_intermediate_size(json, c);
  if (!json.absent("feature_map")) c.feature_map = parse_feature_map(json, "feature_map");
  if (json.present("gate_logit_normalizer")) {
    c.gate_logit_normalizer = json.number("gate_logit_normalizer", kMinNormalizer, kMaxNormalizer);
  }
  c.norm_eps = json.number_or("norm_eps", kMinEps, kMaxEps, c.norm_eps);
  if (json.boolean_or("use_short_conv", false)) {
    c.conv_size = json.integer_or("conv_size", 1, kMaxConv, 4);
  }
  c.elementwise_affine = json.boolean_or("elementwise_affine", true);
  c.tie_word_embeddings = json.boolean_or("tie_word_embeddings", false);
  read_hf_special_tokens(json, c);
  check_together(c, name);
  return c;
}

std::string normalized_config(const GsaConfig& c) {
  nlohmann::json json = {
      {"hidden_size", c.hidden_size},
      {"num_layers", c.num_layers},
      {"vocab_size", c.vocab_size},
      {"intermediate_size", c.intermediate_size},
      {"num_heads", c.num_heads},
      {"num_kv_heads", c.num_kv_heads},
      {"key_dim", c.key_dim},
      {"value_dim", c.value_dim},
      {"num_slots", c.num_slots},
      {"feature_map", feature_map_name(c.feature_map)},
      {"gate_logit_normalizer", c.gate_logit_normalizer},
      {"norm_eps", c.norm_eps},
      {"conv_size", c.conv_size},
      {"elementwise_affine", c.elementwise_affine},
      {"tie_word_embeddings", c.tie_word_embeddings},
      {"bos_token_id", nullptr},
      {"eos_token_ids", c.eos_token_ids},
  };
  if (c.bos_token_id >= 0) json["bos_token_id"] = c.bos_token_id;
  return json.dump();
}

GsaConfig parse_normalized_config(std::string_view text, const std::string& name) {
  const nlohmann::json root = parse_json(text, name);
  const JsonObject json(root, name);
  GsaConfig c;
  c.hidden_size = json.integer("hidden_size", 1, kMaxHidden);
  c.num_layers = json.integer("num_layers", 1, kMaxLayers);
  c.vocab_size = json.integer("vocab_size", 1, kMaxVocab);
  c.intermediate_size = json.integer("intermediate_size", 1, kMaxWidth);
  c.num_heads = json.integer("num_heads", 1, kMaxHeads);
  c.num_kv_heads = json.integer("num_kv_heads", 1, kMaxHeads);
  c.key_dim = json.integer("key_dim", 1, kMaxWidth);
  c.value_dim = json.integer("value_dim", 1, kMaxWidth);
  c.num_slots = json.integer("num_slots", 1, kMaxSlots);
  c.feature_map = parse_feature_map(json, "feature_map");
  c.gate_logit_normalizer = json.number("gate_logit_normalizer", kMinNormalizer, kMaxNormalizer);
  c.norm_eps = json.number("norm_eps", kMinEps, kMaxEps);
  c.conv_size = json.integer("conv_size", 0, kMaxConv);
  c.elementwise_affine = json.boolean("elementwise_affine");
  c.tie_word_embeddings = json.boolean("tie_word_embeddings");
  c.bos_token_id =
      json.at("bos_token_id").is_null() ? -1 : json.integer("bos_token_id", 0, c.vocab_size - 1);
  if (!json.at("eos_token_ids").is_array()) json.refuse("eos_token_ids", "a list of integers");
  c.eos_token_ids = json.integers("eos_token_ids", 0, c.vocab_size - 1);
  check_together(c, name);
  // A field that this version does not know may change the model's meaning.
  const nlohmann::json known = nlohmann::json::parse(normalized_config(c));
  for (const auto& item : root.items()) {
    if (!known.contains(item.key())) {
      throw Error("{}: unknown field \"{}\"", name, printable(item.key()));
    }
  }
  return c;
}

}  // namespace gsa
