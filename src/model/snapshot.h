#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "kernels/host_floats.h"

namespace gsa {

// A sequence taken out of the pool: enough to go on exactly where it stood. A device may still be
// writing state and logits; whoever reads them first waits.
struct Snapshot {
  std::vector<int32_t> tokens;  // that the state has taken in, in order
  HostFloats state;             // as StatePool lays a state out
  HostFloats logits;            // [N] after the last token
};

// Which model a snapshot belongs to.
struct ModelIdentity {
  std::string name;         // for people: the checkpoint's file name
  std::string fingerprint;  // of config and weights
};

// Writes the snapshot as a safetensors file (docs/checkpoint-format.md): hk [L,G,K,M],
// hv [L,G,M,V], conv [L,C-1,channels] where there are convolutions, tokens [T] i32, logits [N] f32.
// `more` is added to the metadata. The file appears whole or not at all. Throws gsa::Error.
void save_snapshot(const Snapshot& snapshot, const GsaConfig& config, const ModelIdentity& model,
                   const std::filesystem::path& path,
                   const std::map<std::string, std::string>& more = {});

// Throws gsa::Error where the file is damaged or was made by another model, naming both.
Snapshot load_snapshot(const std::filesystem::path& path, const GsaConfig& config,
                       const ModelIdentity& model);

}  // namespace gsa
