#include "kernels/tensor.h"

#include <cassert>
#include <vector>

#include "kernels/error.h"
#include "kernels/quantized.h"

namespace gsa {

size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kF64:
    case DType::kI64:
      return 8;
    case DType::kU8:
      return 1;
    case DType::kQ8:
    case DType::kQ4:
      throw Error("{} has no elements of its own, only groups", dtype_name(dtype));
  }
  throw Error("unknown dtype {}", static_cast<int>(dtype));
}

size_t row_bytes(DType dtype, int64_t columns) {
  if (is_quantized(dtype)) return QuantizedRow::bytes(dtype, columns);
  return static_cast<size_t>(columns) * dtype_bytes(dtype);
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kF64:
      return "f64";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
    case DType::kQ8:
      return "q8";
    case DType::kQ4:
      return "q4";
  }
  throw Error("unknown dtype {}", static_cast<int>(dtype));
}

DType type_named(std::string_view name, std::span<const DType> types) {
  std::vector<std::string_view> names;
  for (DType type : types) {
    if (dtype_name(type) == name) return type;
    names.push_back(dtype_name(type));
  }
  throw Error("type {} is not supported, expected {}", name, fmt::join(names, ", "));
}

TensorView::TensorView(void* data, DType dtype, std::initializer_list<int64_t> dims)
    : data(data), dtype(dtype), rank(static_cast<int>(dims.size())) {
  assert(dims.size() <= kMaxRank);
  int i = 0;
  for (int64_t dim : dims) shape[i++] = dim;
}

int64_t TensorView::elements() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

size_t TensorView::bytes() const {
  const int64_t columns = rank == 0 ? 1 : shape[rank - 1];
  return columns == 0 ? 0 : static_cast<size_t>(elements() / columns) * row_bytes(dtype, columns);
}

TensorView TensorView::rows(int64_t begin, int64_t count) const {
  assert(rank > 0 && begin >= 0 && begin + count <= shape[0]);
  TensorView view = *this;
  view.shape[0] = count;
  if (shape[0] > 0) {
    view.data = static_cast<std::byte*>(data) + bytes() / shape[0] * begin;
  }
  return view;
}

float* TensorView::f32() const {
  assert(dtype == DType::kF32);
  return static_cast<float*>(data);
}

std::string shape_string(const TensorView& view) {
  std::string text = "[";
  for (int i = 0; i < view.rank; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(view.shape[i]);
  }
  return text + "]";
}

}  // namespace gsa
