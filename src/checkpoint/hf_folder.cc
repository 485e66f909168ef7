#include "checkpoint/hf_folder.h"

#include <algorithm>
#include <set>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/layout.h"
#include "checkpoint/tokenizer_json.h"
#include "kernels/error.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxJson = size_t{64} << 20;
constexpr size_t kMaxTokenizer = size_t{256} << 20;

void check_folder(const fs::path& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) throw Error("{}: no such folder", folder.string());
  if (!fs::is_directory(folder, error)) {
    throw Error("{}: a file, expected a Hugging Face folder (config.json, model.safetensors, ...)",
                folder.string());
  }
  if (!fs::exists(folder / "config.json", error)) {
    throw Error("{}: has no config.json, expected a folder as save_pretrained writes it",
                folder.string());
  }
}

bool holds_pytorch_weights(const fs::path& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    if (name.rfind("pytorch_model", 0) == 0) return true;
  }
  return false;
}

// Tensor name -> file name, from model.safetensors.index.json.
std::map<std::string, std::string> read_index(const fs::path& path) {
  const nlohmann::json root = parse_json(read_file(path, kMaxJson), path.string());
  const JsonObject index(root, path.string());
  const nlohmann::json& map_json = index.at("weight_map");
  const JsonObject weight_map(map_json, path.string() + ": weight_map");
  std::map<std::string, std::string> files;
  for (const auto& item : map_json.items()) {
    const std::string& file = weight_map.string(item.key());
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      weight_map.refuse(item.key(), "the name of a file in the folder");
    }
    files[item.key()] = file;
  }
  return files;
}

void check_shard(const SafetensorsFile& file, const std::string& file_name,
                 const std::map<std::string, std::string>& index) {
  for (const auto& [name, tensor] : file.tensors()) {
    const auto it = index.find(name);
    if (it == index.end()) {
      throw Error("{}: tensor {} is not in model.safetensors.index.json", file.name(),
                  printable(name));
    }
    if (it->second != file_name) {
      throw Error("{}: tensor {} belongs into {}, says model.safetensors.index.json", file.name(),
                  printable(name), printable(it->second));
    }
  }
  for (const auto& [name, shard] : index) {
    if (shard == file_name && file.tensors().count(name) == 0) {
      throw Error("{}: tensor {} is missing, though model.safetensors.index.json puts it there",
                  file.name(), printable(name));
    }
  }
}

std::vector<SafetensorsFile> open_files(const fs::path& folder) {
  std::error_code error;
  std::vector<SafetensorsFile> files;
  if (fs::exists(folder / "model.safetensors", error)) {
    files.push_back(SafetensorsFile::open(folder / "model.safetensors"));
    return files;
  }
  const fs::path index_path = folder / "model.safetensors.index.json";
  if (!fs::exists(index_path, error)) {
    if (holds_pytorch_weights(folder)) {
      throw Error(
          "{}: holds PyTorch weights only; save the model again with "
          "save_pretrained(FOLDER, safe_serialization=True)",
          folder.string());
    }
    throw Error("{}: has neither model.safetensors nor model.safetensors.index.json",
                folder.string());
  }
  const std::map<std::string, std::string> index = read_index(index_path);
  std::set<std::string> names;
  for (const auto& [tensor, file] : index) names.insert(file);
  for (const std::string& name : names) {
    files.push_back(SafetensorsFile::open(folder / name));
    check_shard(files.back(), name, index);
  }
  return files;
}

void check_tensor(const std::string& where, const SourceTensor& expected,
                  const TensorView& tensor) {
  const bool same_shape =
      tensor.rank == static_cast<int>(expected.shape.size()) &&
      std::equal(expected.shape.begin(), expected.shape.end(), tensor.shape.begin());
  if (!same_shape) {
    throw Error("{}: tensor {} has shape {}, expected [{}] by config.json", where, expected.name,
                shape_string(tensor), fmt::join(expected.shape, ", "));
  }
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16) {
    throw Error("{}: tensor {} is {}, expected f32, f16 or bf16", where, expected.name,
                dtype_name(tensor.dtype));
  }
}

// generation_config.json, where there is one, has the last word on BOS and EOS, as in `generate`
// of Hugging Face.
void read_generation_config(const fs::path& path, GsaConfig& config) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  const nlohmann::json root = parse_json(read_file(path, kMaxJson), path.string());
  const JsonObject json(root, path.string());
  const int64_t last = config.vocab_size - 1;
  if (json.present("bos_token_id")) config.bos_token_id = json.integer("bos_token_id", 0, last);
  if (json.present("eos_token_id")) config.eos_token_ids = json.integers("eos_token_id", 0, last);
}

// A template, or a list of named ones of which "default" is taken.
std::string parse_chat_template(const JsonObject& json) {
  const nlohmann::json& value = json.at("chat_template");
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) json.refuse("chat_template", "a string or a list of named templates");
  for (const nlohmann::json& element : value) {
    const JsonObject named(element, json.name() + ": field \"chat_template\"");
    if (named.string("name") == "default") return named.string("template");
  }
  return {};
}

}  // namespace

HfFolder HfFolder::open(const fs::path& folder) {
  check_folder(folder);
  HfFolder result;
  result.path_ = folder;
  const fs::path config_path = folder / "config.json";
  result.config_ = parse_hf_config(read_file(config_path, kMaxJson), config_path.string());
  read_generation_config(folder / "generation_config.json", result.config_);
  result.files_ = open_files(folder);
  result.collect_tensors();
  result.read_tokenizer();
  return result;
}

void HfFolder::collect_tensors() {
  std::map<std::string, std::string> origin;  // of each tensor, its file
  for (const SafetensorsFile& file : files_) {
    for (const auto& [name, tensor] : file.tensors()) {
      tensors_[name] = tensor;
      origin[name] = file.name();
    }
  }
  const auto gate = tensors_.find("model.layers.0.mlp.gate_proj.weight");
  stacked_gate_ = tensors_.count("model.layers.0.mlp.up_proj.weight") == 0 &&
                  gate != tensors_.end() && gate->second.rank == 2 &&
                  gate->second.shape[0] == 2 * config_.intermediate_size;

  const std::string where = files_.size() == 1 ? files_.front().name() : path_.string();
  std::vector<LayoutTensor> layout = checkpoint_layout(config_, DType::kF32, stacked_gate_);
  std::set<std::string> expected;
  for (const LayoutTensor& weight : layout) {
    for (const SourceTensor& source : weight.sources) {
      expected.insert(source.name);
      const auto it = tensors_.find(source.name);
      if (it == tensors_.end()) throw Error("{}: tensor {} is missing", where, source.name);
      check_tensor(origin[source.name], source, it->second);
      if (weight.matrix) widen_type(it->second.dtype);
    }
  }
  if (config_.tie_word_embeddings) expected.insert("lm_head.weight");  // a copy that is not read
  for (const auto& [name, tensor] : tensors_) {
    if (expected.count(name) == 0) {
      throw Error("{}: tensor {} belongs to no model of this config.json", origin[name],
                  printable(name));
    }
  }
}

// f16 and bf16 hold different numbers: both fit in f32 only.
void HfFolder::widen_type(DType dtype) {
  if (!type_) type_ = dtype;
  if (*type_ != dtype) type_ = DType::kF32;
}

void HfFolder::read_tokenizer() {
  std::error_code error;
  if (fs::exists(path_ / "tokenizer.model", error)) {
    tokenizer_ = read_file(path_ / "tokenizer.model", kMaxTokenizer);
  }
  // The rules of Hugging Face's Llama tokenizer, where tokenizer_config.json does not say.
  rules_.add_bos = !tokenizer_.empty();
  const fs::path config_path = path_ / "tokenizer_config.json";
  if (fs::exists(config_path, error)) {
    const nlohmann::json root = parse_json(read_file(config_path, kMaxJson), config_path.string());
    const JsonObject json(root, config_path.string());
    bos_is_configured_ = json.present("add_bos_token");
    eos_is_configured_ = json.present("add_eos_token");
    if (bos_is_configured_) rules_.add_bos = json.boolean("add_bos_token");
    if (eos_is_configured_) rules_.add_eos = json.boolean("add_eos_token");
    if (json.present("legacy")) rules_.blank_after_special = json.boolean("legacy");
    if (json.present("chat_template")) chat_template_ = parse_chat_template(json);
  }
  if (fs::exists(path_ / "chat_template.jinja", error)) {
    chat_template_ = read_file(path_ / "chat_template.jinja", kMaxJson);
  }
}

void HfFolder::use_tokenizer(const fs::path& model) {
  tokenizer_ = read_file(model, kMaxTokenizer);
  if (tokenizer_.empty()) throw Error("{}: empty, expected a sentencepiece model", model.string());
  if (!bos_is_configured_) rules_.add_bos = true;
}

void HfFolder::use_tokenizer_json() {
  std::error_code error;
  const fs::path path = path_ / "tokenizer.json";
  if (!tokenizer_.empty() || !fs::exists(path, error)) return;
  ConvertedTokenizer converted = convert_tokenizer_json(read_file(path, kMaxJson), path.string());
  tokenizer_ = std::move(converted.model);
  rules_.blank_once = converted.blank_once;
  rules_.blank_after_special = converted.blank_after_special;
  // What is put around text, where tokenizer_config.json does not say.
  const auto& [first, last] = std::pair(converted.first_token, converted.last_token);
  if (!bos_is_configured_) {
    if (first && *first != config_.bos_token_id) {
      throw Error("{}: puts token {} in front of text, expected bos_token_id {}", path.string(),
                  *first, config_.bos_token_id);
    }
    rules_.add_bos = first.has_value();
  }
  if (!eos_is_configured_) {
    const auto& eos = config_.eos_token_ids;
    if (last && std::find(eos.begin(), eos.end(), *last) == eos.end()) {
      throw Error("{}: puts token {} behind text, expected an eos_token_id", path.string(), *last);
    }
    rules_.add_eos = last.has_value();
  }
}

const TensorView& HfFolder::tensor(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) throw Error("{}: tensor {} is missing", path_.string(), name);
  return it->second;
}

}  // namespace gsa
