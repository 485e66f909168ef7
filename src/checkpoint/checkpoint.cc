#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "checkpoint/json.h"
#include "checkpoint/layout.h"
#include "kernels/error.h"

namespace gsa {
namespace {

constexpr const char* kFormat = "1";

DType parse_type(const SafetensorsFile& file) {
  const std::string& type = file.metadata("gsa.type");
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4}) {
    if (type == dtype_name(dtype)) return dtype;
  }
  throw Error("{}: metadata gsa.type is {}, expected f32, f16, bf16, q8 or q4", file.name(),
              printable(type));
}

// What is not quantized in a quantized checkpoint has the embeddings' type.
MatrixTypes matrix_types(const SafetensorsFile& file) {
  const DType fine = file.tensor("embeddings").dtype;
  return {parse_type(file), fine == DType::kBF16 ? DType::kBF16 : DType::kF16};
}

TokenizerRules parse_rules(const SafetensorsFile& file) {
  const nlohmann::json root = parse_json(file.metadata("gsa.tokenizer_rules"),
                                         file.name() + ": metadata gsa.tokenizer_rules");
  const JsonObject json(root, file.name() + ": metadata gsa.tokenizer_rules");
  return {json.boolean("add_bos"), json.boolean("add_eos"), json.boolean_or("blank_once", false),
          json.boolean_or("blank_after_special", false)};
}

void check_format(const SafetensorsFile& file) {
  const auto& metadata = file.metadata();
  const auto format = metadata.find("gsa.format");
  if (format == metadata.end()) {
    if (metadata.count("gsa.snapshot") > 0) {
      throw Error("{}: a snapshot, expected a checkpoint", file.name());
    }
    throw Error("{}: not a converted checkpoint; convert its folder first: gsa convert FOLDER FILE",
                file.name());
  }
  if (format->second != kFormat) {
    throw Error("{}: metadata gsa.format is {}, expected {}", file.name(),
                printable(format->second), kFormat);
  }
}

void check_fingerprint(const SafetensorsFile& file) {
  const std::string& text = file.metadata("gsa.fingerprint");
  const bool valid = text.size() == 16 && std::all_of(text.begin(), text.end(), [](char c) {
                       return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
                     });
  if (!valid) {
    throw Error("{}: metadata gsa.fingerprint is {}, expected 16 hexadecimal digits", file.name(),
                printable(text));
  }
}

// Tensors read in place must be aligned in memory, which a mapping is at its beginning.
void check_weight(const SafetensorsFile& file, const SafetensorsWriter::Entry& entry) {
  const TensorView& tensor = file.tensor(entry.name);
  const bool same_shape = tensor.rank == static_cast<int>(entry.shape.size()) &&
                          std::equal(entry.shape.begin(), entry.shape.end(), tensor.shape.begin());
  if (tensor.dtype != entry.dtype || !same_shape) {
    throw Error("{}: tensor {} is {} {}, expected {} [{}]", file.name(), entry.name,
                dtype_name(tensor.dtype), shape_string(tensor), dtype_name(entry.dtype),
                fmt::join(entry.shape, ", "));
  }
  if (reinterpret_cast<uintptr_t>(tensor.data) % kTensorAlignment != 0) {
    throw Error("{}: tensor {} does not begin at a multiple of {} bytes", file.name(), entry.name,
                kTensorAlignment);
  }
}

bool is_pad(const std::string& name, const TensorView& tensor) {
  const std::string prefix = kPadPrefix;
  return name.size() > prefix.size() && name.compare(0, prefix.size(), prefix) == 0 &&
         std::all_of(name.begin() + prefix.size(), name.end(),
                     [](unsigned char c) { return std::isdigit(c); }) &&
         tensor.dtype == DType::kU8 && tensor.rank == 1 && tensor.shape[0] < kTensorAlignment;
}

void check_tensors(const SafetensorsFile& file, const GsaConfig& config, const MatrixTypes& types) {
  std::set<std::string> expected;
  for (const LayoutTensor& weight : checkpoint_layout(config, types)) {
    check_weight(file, weight.stored());
    expected.insert(weight.entry.name);
  }
  for (const auto& [name, tensor] : file.tensors()) {
    if (expected.count(name) > 0 || is_pad(name, tensor)) continue;
    if (name != kTokenizerTensor) {
      throw Error("{}: tensor {} belongs to no model of this config", file.name(), printable(name));
    }
    if (tensor.dtype != DType::kU8 || tensor.rank != 1) {
      throw Error("{}: tensor {} is {} {}, expected u8 of one dimension", file.name(), name,
                  dtype_name(tensor.dtype), shape_string(tensor));
    }
  }
}

// The weights as the layout describes them: a quantized matrix is stored as plain bytes.
ModelWeights map_weights(const SafetensorsFile& file, const GsaConfig& config) {
  std::map<std::string, TensorView> views;
  for (const LayoutTensor& weight : checkpoint_layout(config, matrix_types(file))) {
    const SafetensorsWriter::Entry& entry = weight.entry;
    TensorView view = file.tensor(entry.name);
    view.dtype = entry.dtype;
    std::copy(entry.shape.begin(), entry.shape.end(), view.shape.begin());
    views[entry.name] = view;
  }
  const auto find = [&](const std::string& name) {
    const auto it = views.find(name);
    return it == views.end() ? TensorView() : it->second;
  };
  ModelWeights weights;
  weights.embeddings = find("embeddings");
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = fmt::format("layers.{}.", i);
    const TensorView qkvf = find(layer + "qkvf");
    weights.layers.push_back({.attn_norm = find(layer + "attn_norm"),
                              .qkvf = qkvf ? qkvf : find(layer + "qkv"),
                              .f = find(layer + "f"),
                              .conv = find(layer + "conv"),
                              .feature_map = find(layer + "feature_map"),
                              .g_norm = find(layer + "g_norm"),
                              .o_proj = find(layer + "o_proj"),
                              .mlp_norm = find(layer + "mlp_norm"),
                              .gate_up = find(layer + "gate_up"),
                              .down = find(layer + "down")});
  }
  weights.norm = find("norm");
  const TensorView head = find("lm_head");
  weights.lm_head = head ? head : weights.embeddings;
  return weights;
}

}  // namespace

Checkpoint::Checkpoint(SafetensorsFile file, GsaConfig config)
    : file_(std::move(file)),
      config_(std::move(config)),
      rules_(parse_rules(file_)),
      weights_(map_weights(file_, config_)) {}

Checkpoint Checkpoint::open(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    throw Error("{0}: a folder, expected a checkpoint; convert it first: gsa convert {0} FILE",
                path.string());
  }
  SafetensorsFile file = SafetensorsFile::open(path);
  check_format(file);
  check_fingerprint(file);
  parse_type(file);
  GsaConfig config =
      parse_normalized_config(file.metadata("gsa.config"), file.name() + ": metadata gsa.config");
  check_tensors(file, config, matrix_types(file));
  return Checkpoint(std::move(file), std::move(config));
}

const std::string& Checkpoint::type() const { return file_.metadata("gsa.type"); }

std::string_view Checkpoint::tokenizer() const {
  const auto it = file_.tensors().find(kTokenizerTensor);
  if (it == file_.tensors().end()) return {};
  return {static_cast<const char*>(it->second.data), it->second.bytes()};
}

std::string Checkpoint::chat_template() const {
  const auto it = file_.metadata().find("gsa.chat_template");
  return it == file_.metadata().end() ? std::string() : it->second;
}

const std::string& Checkpoint::fingerprint() const { return file_.metadata("gsa.fingerprint"); }

}  // namespace gsa
