#include "checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <tuple>

#include "checkpoint/files.h"
#include "checkpoint/json.h"
#include "checkpoint/safetensors_format.h"
#include "kernels/error.h"

namespace gsa {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the format's own library

struct Extent {
  uint64_t begin, end;
  const std::string* tensor;
};

std::optional<DType> parse_dtype(const std::string& text) {
  for (DType dtype : kSafetensorsDTypes) {
    if (text == safetensors_dtype(dtype)) return dtype;
  }
  return std::nullopt;
}

uint64_t unsigned_integer(const nlohmann::json& value, const JsonObject& tensor,
                          std::string_view key) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{INT64_MAX}) {
    throw Error("{}: \"{}\" holds {}, expected integers of 0 to {}", tensor.name(), key,
                printable(value.dump()), INT64_MAX);
  }
  return value.get<uint64_t>();
}

// Fills in dtype and shape, and returns the tensor's bytes. Every product of leading dimensions is
// checked, since TensorView::elements multiplies them in that order.
uint64_t parse_type_and_shape(const JsonObject& tensor, TensorView& view) {
  const std::string& dtype_text = tensor.string("dtype");
  const std::optional<DType> dtype = parse_dtype(dtype_text);
  if (!dtype) {
    throw Error("{}: dtype {} is not supported, expected F32, F16, BF16, F64, I32, I64 or U8",
                tensor.name(), printable(dtype_text));
  }
  view.dtype = *dtype;
  const nlohmann::json& shape = tensor.at("shape");
  if (!shape.is_array()) tensor.refuse("shape", "a list");
  if (shape.size() > TensorView::kMaxRank) {
    throw Error("{}: shape has {} dimensions, expected at most {}", tensor.name(), shape.size(),
                int{TensorView::kMaxRank});
  }
  int64_t elements = 1;
  for (const nlohmann::json& dim : shape) {
    const auto size = static_cast<int64_t>(unsigned_integer(dim, tensor, "shape"));
    view.shape[view.rank++] = size;
    if (__builtin_mul_overflow(elements, size, &elements)) {
      throw Error("{}: shape {} has too many elements", tensor.name(), printable(shape.dump()));
    }
  }
  int64_t bytes = 0;
  if (__builtin_mul_overflow(elements, static_cast<int64_t>(dtype_bytes(*dtype)), &bytes)) {
    throw Error("{}: shape {} has too many elements", tensor.name(), printable(shape.dump()));
  }
  return static_cast<uint64_t>(bytes);
}

// Checks the offsets against the shape and the data's size.
Extent parse_extent(const JsonObject& tensor, uint64_t bytes, uint64_t data_size) {
  const nlohmann::json& offsets = tensor.at("data_offsets");
  if (!offsets.is_array() || offsets.size() != 2) {
    tensor.refuse("data_offsets", "a list of two integers");
  }
  const uint64_t begin = unsigned_integer(offsets[0], tensor, "data_offsets");
  const uint64_t end = unsigned_integer(offsets[1], tensor, "data_offsets");
  if (begin > end) {
    throw Error("{}: data_offsets [{}, {}] end before they begin", tensor.name(), begin, end);
  }
  if (end > data_size) {
    throw Error("{}: data_offsets [{}, {}] run past the end of the file, which holds {} data bytes",
                tensor.name(), begin, end, data_size);
  }
  if (end - begin != bytes) {
    throw Error("{}: data_offsets [{}, {}] hold {} bytes, but dtype and shape make {}",
                tensor.name(), begin, end, end - begin, bytes);
  }
  return {begin, end, nullptr};
}

// The tensors must follow each other without overlap or gap from the first data byte to the last.
void check_cover(std::vector<Extent>& extents, uint64_t data_size, const std::string& name) {
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::tie(a.begin, a.end, *a.tensor) < std::tie(b.begin, b.end, *b.tensor);
  });
  uint64_t covered = 0;
  const std::string* before = nullptr;
  for (const Extent& extent : extents) {
    if (extent.begin < covered) {
      throw Error("{}: tensor {}: data_offsets [{}, {}] overlap those of tensor {}", name,
                  printable(*extent.tensor), extent.begin, extent.end, printable(*before));
    }
    if (extent.begin > covered) {
      throw Error("{}: tensor {}: data_offsets begin at {}, leaving a gap after byte {}", name,
                  printable(*extent.tensor), extent.begin, covered);
    }
    covered = extent.end;
    before = extent.tensor;
  }
  if (covered != data_size) {
    throw Error("{}: {} bytes behind the last tensor belong to none", name, data_size - covered);
  }
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    throw Error("{}: is a folder, expected a safetensors file", path.string());
  }
  FileMapping mapping = map_file(path);
  SafetensorsFile file;
  file.name_ = path.string();
  file.mapping_ = std::move(mapping.owner);
  file.parse_header(mapping.bytes);
  return file;
}

SafetensorsFile SafetensorsFile::parse(std::string_view bytes, const std::string& name) {
  SafetensorsFile file;
  file.name_ = name;
  file.parse_header(bytes);
  return file;
}

void SafetensorsFile::parse_header(std::string_view bytes) {
  uint64_t header_size = 0;
  if (bytes.size() < sizeof(header_size)) {
    throw Error("{}: {} bytes are too few for a safetensors file", name_, bytes.size());
  }
  std::memcpy(&header_size, bytes.data(), sizeof(header_size));
  const uint64_t rest = bytes.size() - sizeof(header_size);
  if (header_size > rest) {
    throw Error(
        "{}: not a safetensors file: a header of {} bytes is longer than the file, {} bytes", name_,
        header_size, bytes.size());
  }
  if (header_size > kMaxHeader) {
    throw Error("{}: header of {} bytes, expected at most {}", name_, header_size, kMaxHeader);
  }
  const nlohmann::json header = parse_json(bytes.substr(sizeof(header_size), header_size), name_);
  if (!header.is_object()) throw Error("{}: the header is no JSON object", name_);
  const std::string_view data = bytes.substr(sizeof(header_size) + header_size);

  std::vector<Extent> extents;
  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      const JsonObject object(value, name_ + ": __metadata__");
      for (const auto& item : value.items()) metadata_[item.key()] = object.string(item.key());
      continue;
    }
    const JsonObject tensor(value, fmt::format("{}: tensor {}", name_, printable(key)));
    for (const auto& item : value.items()) {
      if (item.key() != "dtype" && item.key() != "shape" && item.key() != "data_offsets") {
        throw Error("{}: unknown field \"{}\"", tensor.name(), printable(item.key()));
      }
    }
    TensorView view;
    const uint64_t tensor_bytes = parse_type_and_shape(tensor, view);
    Extent extent = parse_extent(tensor, tensor_bytes, data.size());
    view.data = const_cast<char*>(data.data() + extent.begin);
    extent.tensor = &tensors_.emplace(key, view).first->first;
    extents.push_back(extent);
  }
  check_cover(extents, data.size(), name_);
}

const TensorView& SafetensorsFile::tensor(const std::string& name) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) throw Error("{}: tensor {} is missing", name_, name);
  return it->second;
}

const std::string& SafetensorsFile::metadata(const std::string& key) const {
  const auto it = metadata_.find(key);
  if (it == metadata_.end()) throw Error("{}: metadata {} is missing", name_, key);
  return it->second;
}

}  // namespace gsa
