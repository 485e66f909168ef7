#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/tensor.h"

namespace gsa {

// One safetensors file, mapped into memory read-only and used in place.
//
// open() checks everything that can be checked without reading tensor data: header length against
// the file, JSON depth and duplicate keys, dtype, shape (at most 4 dimensions), offsets (in range,
// agreeing with shape and dtype, covering the data without overlap or gap). It allocates nothing by
// a length it has not checked. Throws gsa::Error naming the file and the tensor. A tensor is
// aligned only as well as its place in the file is. Movable; views stay valid as long as the object
// (or the one it was moved to) lives. Reading from several threads is safe.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);

  // The same checks over bytes in memory; `name` stands for the file in errors. The bytes must
  // outlive the object.
  static SafetensorsFile parse(std::string_view bytes, const std::string& name);

  const std::string& name() const { return name_; }

  // By tensor name. The views point into the mapping, which is not writable.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

  // Throws if absent.
  const TensorView& tensor(const std::string& name) const;

  // The strings under "__metadata__".
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Throws if absent.
  const std::string& metadata(const std::string& key) const;

 private:
  SafetensorsFile() = default;
  void parse_header(std::string_view bytes);

  std::string name_;
  std::shared_ptr<const void> mapping_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Writes one safetensors file, tensor after tensor in the declared order. The header is padded to
// 64 bytes, so a tensor starts 64-byte aligned wherever the sizes before it are multiples of 64;
// declaring tensors with odd sizes last is the caller's part. The format allows no gaps.
// The bytes go to a temporary name beside `path`; finish() syncs and renames, so a file that
// exists under `path` is whole. A writer destroyed before finish() leaves nothing behind.
class SafetensorsWriter {
 public:
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
  };

  // Throws if the temporary file can't be made.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                    const std::map<std::string, std::string>& metadata);
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  // Appends bytes to the tensors in their declared order; a tensor may come in many pieces.
  void write(const void* data, size_t bytes);

  // Puts another string of the same length (as JSON) in the place of a metadata value: for what is
  // known only when the data have been written, such as a hash of them.
  void replace_metadata(const std::string& key, const std::string& value);

  // REQUIRES: all declared bytes written (throws otherwise).
  void finish();

 private:
  struct File;
  std::unique_ptr<File> file_;
};

}  // namespace gsa
