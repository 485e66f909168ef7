#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/safetensors.h"
#include "engine/engine.h"
#include "engine/loaded_model.h"

namespace gsa::test {

inline std::string tale_path() { return GSA_SOURCE_DIR "/models/tale-10m.safetensors"; }

// The story teller that ships, loaded once.
inline std::shared_ptr<const LoadedModel> tale_model() {
  static const std::shared_ptr<const LoadedModel> model = load_model(tale_path());
  return model;
}

// The same weights with a chat template.
inline std::shared_ptr<const LoadedModel> tale_with_template(const std::string& source) {
  auto model = std::make_shared<LoadedModel>();
  model->config = tale_model()->config;
  model->weights = tale_model()->weights;
  model->identity = tale_model()->identity;
  model->type = tale_model()->type;
  model->storage = tale_model();
  model->tokenizer.emplace(Checkpoint::open(tale_path()));
  model->chat_template = source;
  return model;
}

// The same as a file.
inline void write_tale_with_template(const std::string& source, const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(tale_path());
  std::vector<std::pair<std::string, TensorView>> tensors(file.tensors().begin(),
                                                          file.tensors().end());
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.second.data < b.second.data; });
  std::vector<SafetensorsWriter::Entry> entries;
  for (const auto& [name, view] : tensors) {
    entries.push_back({name, view.dtype, {view.shape.begin(), view.shape.begin() + view.rank}});
  }
  std::map<std::string, std::string> metadata = file.metadata();
  metadata["gsa.chat_template"] = source;
  SafetensorsWriter writer(path, entries, metadata);
  for (const auto& [name, view] : tensors) writer.write(view.data, view.bytes());
  writer.finish();
}

inline EngineOptions one_state(bool run_ahead = false) {
  return {.device = "cpu", .threads = 1, .states = 1, .run_ahead = run_ahead};
}

}  // namespace gsa::test
