#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"

namespace gsa {

// A Hugging Face folder as flash-linear-attention saves it: config.json, model.safetensors or
// shards with model.safetensors.index.json, and what there is of tokenizer.model,
// tokenizer_config.json, generation_config.json.
class HfFolder {
 public:
  // Checks that every tensor the config asks for is there with its shape as f32, f16 or bf16, and
  // none else (`lm_head.weight` of a tied model is allowed, and not read). Throws gsa::Error naming
  // the file and the tensor or field.
  static HfFolder open(const std::filesystem::path& folder);

  const std::filesystem::path& path() const { return path_; }
  // config.json, with BOS and EOS as generation_config.json says.
  const GsaConfig& config() const { return config_; }

  // By Hugging Face name, over all shards.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const TensorView& tensor(const std::string& name) const;

  // Type of the large matrices; f32 where they differ.
  DType type() const { return *type_; }

  // True where gate_proj holds gate and up stacked [2F, D] (before February 2025).
  bool stacked_gate() const { return stacked_gate_; }

  // A serialised sentencepiece model: the folder's tokenizer.model, unless one of the functions
  // below gave another; or empty.
  const std::string& tokenizer() const { return tokenizer_; }
  const std::string& chat_template() const { return chat_template_; }  // or empty

  // As tokenizer_config.json says; else those of Hugging Face's Llama tokenizer: BOS where there is
  // a tokenizer.model, never EOS.
  const TokenizerRules& tokenizer_rules() const { return rules_; }

  // Makes a sentencepiece model with the same ids of tokenizer.json, where there is one and no
  // tokenizer.model. Throws gsa::Error where that cannot be (see convert_tokenizer_json).
  void use_tokenizer_json();

  // Takes this sentencepiece model in place of what the folder has.
  void use_tokenizer(const std::filesystem::path& model);

 private:
  HfFolder() = default;
  void collect_tensors();
  void widen_type(DType dtype);
  void read_tokenizer();

  std::filesystem::path path_;
  GsaConfig config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, TensorView> tensors_;
  std::optional<DType> type_;
  bool stacked_gate_ = false;
  std::string tokenizer_;
  std::string chat_template_;
  TokenizerRules rules_;
  bool bos_is_configured_ = false, eos_is_configured_ = false;  // in tokenizer_config.json
};

}  // namespace gsa
