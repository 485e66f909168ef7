#pragma once

#include <filesystem>
#include <map>
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
  // Checks that every tensor the config asks for is there with its shape, and none else
  // (`lm_head.weight` of a tied model and buffers known to be derived are allowed). Throws.
  static HfFolder open(const std::filesystem::path& folder);

  const std::filesystem::path& path() const { return path_; }
  const GsaConfig& config() const { return config_; }

  // By Hugging Face name, over all shards.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const TensorView& tensor(const std::string& name) const;

  // True where gate_proj holds gate and up stacked [2F, D] (before February 2025).
  bool stacked_gate() const { return stacked_gate_; }

  const std::string& tokenizer() const { return tokenizer_; }          // bytes, or empty
  const std::string& chat_template() const { return chat_template_; }  // or empty
  const TokenizerRules& tokenizer_rules() const { return rules_; }

 private:
  HfFolder() = default;

  std::filesystem::path path_;
  GsaConfig config_;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, TensorView> tensors_;
  bool stacked_gate_ = false;
  std::string tokenizer_;
  std::string chat_template_;
  TokenizerRules rules_;
};

}  // namespace gsa
