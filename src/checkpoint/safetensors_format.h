#pragma once

#include <array>
#include <string_view>

#include "kernels/error.h"
#include "kernels/tensor.h"

namespace gsa {

// What the reader and the writer of safetensors share.

inline constexpr std::array kSafetensorsDTypes = {
    DType::kF32, DType::kF16, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8};

// The name of a dtype in a header.
constexpr std::string_view safetensors_dtype(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "F32";
    case DType::kF16:
      return "F16";
    case DType::kBF16:
      return "BF16";
    case DType::kF64:
      return "F64";
    case DType::kI32:
      return "I32";
    case DType::kI64:
      return "I64";
    case DType::kU8:
      return "U8";
    case DType::kQ8:
    case DType::kQ4:
      break;  // stored as U8
  }
  throw Error("unknown dtype {}", static_cast<int>(dtype));
}

}  // namespace gsa
