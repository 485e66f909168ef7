#include "checkpoint/convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checkpoint/convert_source.h"
#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/layout.h"
#include "checkpoint/quantize.h"
#include "checkpoint/xxhash64.h"
#include "kernels/error.h"
#include "kernels/half.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kBlock = 2 << 20;  // elements converted at a time

float load(const std::byte* p, DType dtype) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, p, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return dtype == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

// Converts `count` elements at `from`, which need not be aligned. Returns false, with the value in
// `misfit`, where a finite value is too large for the type.
template <DType kFrom, DType kTo>
bool convert_elements(const std::byte* from, int64_t count, std::byte* to, float& misfit) {
  constexpr size_t kFromBytes = kFrom == DType::kF32 ? 4 : 2;
  for (int64_t i = 0; i < count; ++i) {
    const float value = load(from + i * kFromBytes, kFrom);
    if constexpr (kTo == DType::kF32) {
      std::memcpy(to + i * sizeof(value), &value, sizeof(value));
    } else {
      const uint16_t bits = kTo == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
      constexpr uint16_t kInfinity = kTo == DType::kF16 ? 0x7c00 : 0x7f80;
      if ((bits & 0x7fff) == kInfinity && std::isfinite(value)) {
        misfit = value;
        return false;
      }
      std::memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
    }
  }
  return true;
}

using Converter = bool (*)(const std::byte*, int64_t, std::byte*, float&);

// REQUIRES: different types, each f32, f16 or bf16.
Converter find_converter(DType from, DType to) {
  constexpr DType f32 = DType::kF32, f16 = DType::kF16, bf16 = DType::kBF16;
  if (from == f32) return to == f16 ? convert_elements<f32, f16> : convert_elements<f32, bf16>;
  if (from == f16) return to == f32 ? convert_elements<f16, f32> : convert_elements<f16, bf16>;
  return to == f32 ? convert_elements<bf16, f32> : convert_elements<bf16, f16>;
}

// Streams weights through the writer and the hash.
class Stream {
 public:
  Stream(SafetensorsWriter& writer, int64_t total, const ConvertOptions& options)
      : writer_(writer), total_(total), options_(options) {}

  XxHash64& hash() { return hash_; }

  void weight(const std::string& where, const std::string& name, const TensorView& source,
              DType type) {
    // Pieces of whole rows, which quantized types need, or of any elements.
    const int64_t columns = is_quantized(type) ? source.shape[source.rank - 1] : 1;
    const int64_t rows = columns == 0 ? 0 : source.elements() / columns;
    const int64_t most = std::max<int64_t>(1, kBlock / std::max<int64_t>(columns, 1));
    const auto* data = static_cast<const std::byte*>(source.data);
    const size_t from_bytes = row_bytes(source.dtype, columns), to_bytes = row_bytes(type, columns);
    for (int64_t begin = 0; begin < rows; begin += most) {
      const int64_t count = std::min(most, rows - begin);
      const std::byte* piece = data + begin * from_bytes;
      const std::byte* result = piece;
      if (source.dtype != type) {
        buffer_.resize(most * to_bytes);
        float misfit = 0;
        if (!convert_rows(piece, source.dtype, count, columns, type, misfit)) {
          throw Error("{}: tensor {} holds {}, which does not fit {}; convert to another type",
                      where, name, misfit, dtype_name(type));
        }
        result = buffer_.data();
      }
      hash_.update(result, count * to_bytes);
      bytes(result, count * to_bytes);
      drop_pages(piece, count * from_bytes);
    }
  }

  // Not part of the hash.
  void bytes(const void* data, size_t size) {
    writer_.write(data, size);
    done_ += static_cast<int64_t>(size);
    if (options_.progress) options_.progress(done_, total_);
  }

 private:
  // Into buffer_. Returns false, with the value in `misfit`, where one does not fit the type.
  bool convert_rows(const std::byte* from, DType from_type, int64_t rows, int64_t columns,
                    DType type, float& misfit) {
    const int64_t count = rows * columns;
    if (!is_quantized(type)) {
      return find_converter(from_type, type)(from, count, buffer_.data(), misfit);
    }
    floats_.resize(count);
    for (int64_t i = 0; i < count; ++i) {
      floats_[i] = load(from + i * dtype_bytes(from_type), from_type);
    }
    const float* wrong = quantize_rows(floats_.data(), rows, columns, type, buffer_.data());
    if (wrong != nullptr) misfit = *wrong;
    return wrong == nullptr;
  }

  SafetensorsWriter& writer_;
  int64_t total_;
  const ConvertOptions& options_;
  int64_t done_ = 0;
  XxHash64 hash_;
  std::vector<std::byte> buffer_;
  std::vector<float> floats_;
};

int64_t entry_bytes(const SafetensorsWriter::Entry& entry) {
  int64_t bytes = static_cast<int64_t>(dtype_bytes(entry.dtype));
  for (int64_t dim : entry.shape) bytes *= dim;
  return bytes;
}

int64_t pad_bytes(const SafetensorsWriter::Entry& entry) {
  return (kTensorAlignment - entry_bytes(entry) % kTensorAlignment) % kTensorAlignment;
}

// The tensors of the file: the weights, each padded to the alignment, and the tokenizer.
std::vector<SafetensorsWriter::Entry> file_entries(const std::vector<LayoutTensor>& layout,
                                                   const std::string& tokenizer) {
  std::vector<SafetensorsWriter::Entry> entries;
  int pads = 0;
  for (const LayoutTensor& weight : layout) {
    entries.push_back(weight.stored());
    if (const int64_t pad = pad_bytes(entries.back()); pad > 0) {
      entries.push_back({fmt::format("{}{}", kPadPrefix, pads++), DType::kU8, {pad}});
    }
  }
  if (!tokenizer.empty()) {
    entries.push_back({kTokenizerTensor, DType::kU8, {static_cast<int64_t>(tokenizer.size())}});
  }
  return entries;
}

std::string hex(uint64_t value) { return fmt::format("{:016x}", value); }

std::string rules_json(const TokenizerRules& rules) {
  std::string json = fmt::format("{{\"add_bos\":{},\"add_eos\":{}", rules.add_bos, rules.add_eos);
  if (rules.blank_once) json += ",\"blank_once\":true";
  if (rules.blank_after_special) json += ",\"blank_after_special\":true";
  return json + "}";
}

std::map<std::string, std::string> file_metadata(const ConvertSource& source, DType type) {
  std::map<std::string, std::string> metadata = {
      {"gsa.format", "1"},
      {"gsa.config", normalized_config(source.config)},
      {"gsa.type", std::string(dtype_name(type))},
      {"gsa.fingerprint", hex(0)},
      {"gsa.tokenizer_rules", rules_json(source.rules)},
      {"gsa.source", source.name},
  };
  if (!source.chat_template.empty()) metadata["gsa.chat_template"] = source.chat_template;
  return metadata;
}

// Writing into the source folder is fine as long as it stays the same Hugging Face folder.
void check_destination(const fs::path& source, const fs::path& destination, bool force) {
  check_writable(destination);
  std::error_code error;
  if (fs::equivalent(source, destination, error)) {
    throw Error("{}: the source itself, expected another name", destination.string());
  }
  const fs::path folder = destination.has_parent_path() ? destination.parent_path() : ".";
  const std::string name = destination.filename().string();
  if (fs::equivalent(source, folder, error)) {
    const bool weights = name == "model.safetensors" || name == "model.safetensors.index.json";
    bool foreign = false;
    if (fs::exists(destination, error)) {
      try {
        const auto file = SafetensorsFile::open(destination);
        foreign = file.metadata().count("gsa.format") == 0;
      } catch (const Error&) {
        foreign = true;
      }
    }
    if (weights || foreign) {
      throw Error("{}: a file of the source folder, expected another name", destination.string());
    }
  }
  if (!force && fs::exists(destination, error)) {
    throw Error("{}: exists; --force overwrites it", destination.string());
  }
}

}  // namespace

void convert(const fs::path& source_path, const fs::path& destination,
             const ConvertOptions& options) {
  for (DType none : {DType::kF64, DType::kI32, DType::kI64, DType::kU8}) {
    if (options.type != none) continue;
    throw Error("type {} is not supported, expected f32, f16, bf16, q8 or q4", dtype_name(none));
  }
  const ConvertSource source = open_convert_source(source_path, options.tokenizer);
  check_destination(source_path, destination, options.force);
  const DType type = options.type.value_or(source.type);
  const DType fine = source.type == DType::kBF16 ? DType::kBF16 : DType::kF16;
  const std::vector<LayoutTensor> layout =
      checkpoint_layout(source.config, {type, fine}, source.stacked_gate);
  const std::vector<SafetensorsWriter::Entry> entries = file_entries(layout, source.tokenizer);
  int64_t total = 0;
  for (const SafetensorsWriter::Entry& entry : entries) total += entry_bytes(entry);

  const std::map<std::string, std::string> metadata = file_metadata(source, type);
  SafetensorsWriter writer(destination, entries, metadata);
  Stream stream(writer, total, options);
  const std::string head = metadata.at("gsa.config") + "\n" + metadata.at("gsa.type") + "\n";
  stream.hash().update(head.data(), head.size());
  constexpr std::byte kZeros[kTensorAlignment] = {};
  for (const LayoutTensor& weight : layout) {
    for (const SourceTensor& part : weight.sources) {
      stream.weight(source.where, part.name, source.tensor(part.name), weight.entry.dtype);
    }
    if (const int64_t pad = pad_bytes(weight.stored()); pad > 0) stream.bytes(kZeros, pad);
  }
  if (!source.tokenizer.empty()) {
    stream.bytes(source.tokenizer.data(), source.tokenizer.size());
  }
  writer.replace_metadata("gsa.fingerprint", hex(stream.hash().digest()));
  writer.finish();
}

}  // namespace gsa
