#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"
#include "kernels/tensor.h"

namespace gsa {

// How a row of a quantized matrix is stored. Its columns are cut into groups of 32, the last one
// filled up with zeros. First come the integers of all groups, then a float16 scale for each group,
// for q4 then a float16 minimum for each group, then zeros up to a multiple of 16 bytes, so that
// every row and every group's integers are aligned for loads of 16 bytes:
//
//   q8: 32 int8 a group, -127 to 127;                  weight = scale * integer
//   q4: 16 bytes a group; the low half of byte i is column i, the high half column i + 16;
//                                                      weight = scale * half + minimum
//
// The products are exact in float32 (11 bits by 8), so the weight is the same float however it is
// computed.
struct QuantizedRow {
  static constexpr int64_t kGroup = 32;
  static constexpr size_t kAlignment = 16;

  static constexpr int64_t groups(int64_t columns) { return (columns + kGroup - 1) / kGroup; }

  // Bytes of a group's integers.
  static constexpr size_t group_bytes(DType dtype) {
    return dtype == DType::kQ8 ? kGroup : kGroup / 2;
  }

  // Where the scales begin, and the minima of q4.
  static constexpr size_t scales_offset(DType dtype, int64_t columns) {
    return static_cast<size_t>(groups(columns)) * group_bytes(dtype);
  }
  static constexpr size_t minima_offset(DType dtype, int64_t columns) {
    return scales_offset(dtype, columns) + static_cast<size_t>(groups(columns)) * sizeof(uint16_t);
  }

  static constexpr size_t bytes(DType dtype, int64_t columns) {
    const size_t minima = dtype == DType::kQ4 ? groups(columns) * sizeof(uint16_t) : 0;
    const size_t used = minima_offset(dtype, columns) + minima;
    return (used + kAlignment - 1) / kAlignment * kAlignment;
  }

  // One weight of a row; for tests and small work.
  static float value(const std::byte* row, DType dtype, int64_t columns, int64_t column) {
    const int64_t group = column / kGroup, i = column % kGroup;
    const auto half_at = [&](size_t offset) {
      uint16_t bits;
      std::memcpy(&bits, row + offset + group * sizeof(bits), sizeof(bits));
      return f16_to_f32(bits);
    };
    const float scale = half_at(scales_offset(dtype, columns));
    const std::byte* integers = row + group * group_bytes(dtype);
    if (dtype == DType::kQ8) return scale * static_cast<float>(static_cast<int8_t>(integers[i]));
    const int half = std::to_integer<int>(integers[i % 16]) >> (i < 16 ? 0 : 4) & 15;
    return scale * static_cast<float>(half) + half_at(minima_offset(dtype, columns));
  }
};

}  // namespace gsa
