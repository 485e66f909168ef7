#include "model/snapshot.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "checkpoint/safetensors.h"
#include "kernels/error.h"

namespace gsa {
namespace {

// The tensors of a snapshot of T tokens, in the order of the file. hk, hv and conv follow each
// other as in StatePool's layout.
std::vector<SafetensorsWriter::Entry> entries(const GsaConfig& c, int64_t T) {
  const int64_t L = c.num_layers, G = c.num_kv_heads;
  std::vector<SafetensorsWriter::Entry> list = {
      {"hk", DType::kF32, {L, G, c.key_dim, c.num_slots}},
      {"hv", DType::kF32, {L, G, c.num_slots, c.value_dim}}};
  if (c.conv_size > 1)
    list.push_back({"conv", DType::kF32, {L, c.conv_size - 1, c.conv_channels()}});
  list.push_back({"logits", DType::kF32, {c.vocab_size}});
  list.push_back({"tokens", DType::kI32, {T}});
  return list;
}

}  // namespace

void save_snapshot(const Snapshot& snapshot, const GsaConfig& config, const ModelIdentity& model,
                   const std::filesystem::path& path,
                   const std::map<std::string, std::string>& more) {
  assert(static_cast<int64_t>(snapshot.state.size() * sizeof(float)) == config.state_bytes());
  assert(static_cast<int64_t>(snapshot.logits.size()) == config.vocab_size);
  std::map<std::string, std::string> metadata = {{"gsa.snapshot", "1"},
                                                 {"gsa.version", GSA_VERSION},
                                                 {"gsa.config", normalized_config(config)},
                                                 {"gsa.model", model.name},
                                                 {"gsa.fingerprint", model.fingerprint}};
  metadata.insert(more.begin(), more.end());
  SafetensorsWriter writer(path, entries(config, static_cast<int64_t>(snapshot.tokens.size())),
                           metadata);
  writer.write(snapshot.state.data(), snapshot.state.size() * sizeof(float));
  writer.write(snapshot.logits.data(), snapshot.logits.size() * sizeof(float));
  writer.write(snapshot.tokens.data(), snapshot.tokens.size() * sizeof(int32_t));
  writer.finish();
}

Snapshot load_snapshot(const std::filesystem::path& path, const GsaConfig& config,
                       const ModelIdentity& model) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  const auto version = file.metadata().find("gsa.snapshot");
  if (version == file.metadata().end()) throw Error("{}: not a snapshot of gsa", file.name());
  if (version->second != "1") {
    throw Error("{}: snapshot format {} is newer than this program", file.name(), version->second);
  }
  if (file.metadata("gsa.fingerprint") != model.fingerprint) {
    throw Error("{}: made by the model {} ({}), which is not {} ({})", file.name(),
                file.metadata("gsa.model"), file.metadata("gsa.fingerprint"), model.name,
                model.fingerprint);
  }
  const TensorView& tokens = file.tensor("tokens");
  const int64_t T = tokens.rank == 1 ? tokens.shape[0] : 0;
  if (tokens.elements() == 0) {
    throw Error("{}: holds no tokens, expected at least one", file.name());
  }
  Snapshot snapshot;
  std::vector<float> state, logits;
  for (const SafetensorsWriter::Entry& entry : entries(config, T)) {
    const TensorView& tensor = file.tensor(entry.name);
    if (tensor.dtype != entry.dtype || tensor.rank != static_cast<int>(entry.shape.size()) ||
        !std::equal(entry.shape.begin(), entry.shape.end(), tensor.shape.begin())) {
      throw Error("{}: tensor {} is {} {}, which does not fit the model", file.name(), entry.name,
                  dtype_name(tensor.dtype), shape_string(tensor));
    }
    if (entry.name == "tokens") {
      snapshot.tokens.resize(T);
      std::memcpy(snapshot.tokens.data(), tensor.data, tensor.bytes());
      continue;
    }
    std::vector<float>& floats = entry.name == "logits" ? logits : state;
    const size_t before = floats.size();
    floats.resize(before + tensor.elements());
    std::memcpy(floats.data() + before, tensor.data, tensor.bytes());
  }
  snapshot.state = std::move(state);
  snapshot.logits = std::move(logits);
  for (int32_t token : snapshot.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      throw Error("{}: token id {} is outside the vocabulary", file.name(), token);
    }
  }
  return snapshot;
}

}  // namespace gsa
