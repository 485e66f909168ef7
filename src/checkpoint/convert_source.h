#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/config.h"

namespace gsa {

// A model that can be converted, whatever it is stored as.
struct ConvertSource {
  std::string where;  // for errors
  std::string name;   // of the folder that the model came from, without its path
  GsaConfig config;
  DType type = DType::kF32;  // of the matrices; f32 where they differ
  bool stacked_gate = false;
  std::map<std::string, TensorView> tensors;  // by Hugging Face name; shapes may lack ones
  std::string tokenizer;                      // a serialised sentencepiece model, or empty
  TokenizerRules rules;
  std::string chat_template;           // or empty
  std::shared_ptr<const void> holder;  // of the tensors' memory

  const TensorView& tensor(const std::string& tensor_name) const { return tensors.at(tensor_name); }
};

// Opens a Hugging Face folder or a checkpoint of f32, f16 or bf16 matrices. `tokenizer`: a
// sentencepiece model to take in place of the source's. Throws gsa::Error.
ConvertSource open_convert_source(const std::filesystem::path& path,
                                  const std::optional<std::filesystem::path>& tokenizer);

}  // namespace gsa
