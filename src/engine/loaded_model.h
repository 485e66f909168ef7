#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "model/snapshot.h"
#include "text/tokenizer.h"

namespace gsa {

// A model ready for an engine: host-side weights and what belongs to its text. Immutable and shared
// by engines; whoever holds it keeps the weights alive.
struct LoadedModel {
  GsaConfig config;
  ModelWeights weights;
  ModelIdentity identity;
  std::string type;                    // of the large matrices: "bf16"
  std::optional<Tokenizer> tokenizer;  // absent: token ids only
  std::string chat_template;           // Jinja source, for ChatTemplate; empty: has none
  std::shared_ptr<const void> storage;
};

// Maps a converted checkpoint. Throws gsa::Error.
std::shared_ptr<const LoadedModel> load_model(const std::filesystem::path& path);

// A model of this shape with random weights of a checkpoint's types, for measurements. `name`
// stands for it in tables.
std::shared_ptr<const LoadedModel> random_model(const GsaConfig& config, DType type,
                                                const std::string& name);

}  // namespace gsa
