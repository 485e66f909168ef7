#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "checkpoint/safetensors.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tree.h"

namespace gsa::test {

inline std::filesystem::path fixture(const std::string& name) {
  return tree() / "tests/data/fixtures" / name;
}

// A Hugging Face folder to change piece by piece, beginning as a copy of a fixture of one file.
class HfSource {
 public:
  struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    std::string bytes;
  };

  explicit HfSource(const std::string& fixture_name = "base") {
    const std::filesystem::path from = fixture(fixture_name);
    config = nlohmann::json::parse(read_bytes(from / "config.json"));
    tensors = read_tensors({from / "model.safetensors"});
  }

  // Writes config.json and model.safetensors into a folder named "source" and returns it.
  const std::filesystem::path& write() {
    std::filesystem::create_directories(path);
    write_bytes(path / "config.json", config.dump());
    write_weights(path / "model.safetensors");
    return path;
  }

  void write_weights(const std::filesystem::path& to) const {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const auto& [name, tensor] : tensors)
      entries.push_back({name, tensor.dtype, tensor.shape});
    SafetensorsWriter writer(to, entries, {{"format", "pt"}});
    for (const auto& [name, tensor] : tensors) {
      writer.write(tensor.bytes.data(), tensor.bytes.size());
    }
    writer.finish();
  }

  static std::map<std::string, Tensor> read_tensors(
      const std::vector<std::filesystem::path>& files) {
    std::map<std::string, Tensor> all;
    for (const std::filesystem::path& path : files) {
      const SafetensorsFile file = SafetensorsFile::open(path);
      for (const auto& [name, view] : file.tensors()) {
        all[name] = {view.dtype,
                     {view.shape.begin(), view.shape.begin() + view.rank},
                     std::string(static_cast<const char*>(view.data), view.bytes())};
      }
    }
    return all;
  }

  // Another tensor of zeros under `name`.
  void put_zeros(const std::string& name, DType dtype, std::vector<int64_t> shape) {
    size_t bytes = dtype_bytes(dtype);
    for (int64_t dim : shape) bytes *= static_cast<size_t>(dim);
    tensors[name] = {dtype, std::move(shape), std::string(bytes, '\0')};
  }

  TemporaryFolder folder;
  std::filesystem::path path = folder / "source";
  nlohmann::json config;
  std::map<std::string, Tensor> tensors;
};

}  // namespace gsa::test
