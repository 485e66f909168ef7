#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace gsa {

enum class DType : uint8_t { kF32, kF16, kBF16, kF64, kI32, kI64, kU8 };

// Bytes of one element.
size_t dtype_bytes(DType dtype);

// The lower-case name users type and read: "f32", "f16", "bf16", "f64", "i32", "i64", "u8".
std::string_view dtype_name(DType dtype);

// A dense row-major array of up to four dimensions. Owns nothing: whoever makes a view says how
// long the memory lives. Views of weights point to read-only memory and are never written.
struct TensorView {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};

  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape);

  explicit operator bool() const { return data != nullptr; }
  int64_t elements() const;
  size_t bytes() const { return static_cast<size_t>(elements()) * dtype_bytes(dtype); }

  // Rows [begin, begin + count) along the first dimension.
  TensorView rows(int64_t begin, int64_t count) const;

  // REQUIRES: dtype is kF32 (asserted).
  float* f32() const;
};

// "[8, 64]"
std::string shape_string(const TensorView& view);

}  // namespace gsa
