#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace gsa {

// kQ8 and kQ4 are matrices of small integers with a float16 scale for every group of 32 columns
// (kernels/quantized.h); their elements have no address.
enum class DType : uint8_t { kF32, kF16, kBF16, kF64, kI32, kI64, kU8, kQ8, kQ4 };

constexpr bool is_quantized(DType dtype) { return dtype == DType::kQ8 || dtype == DType::kQ4; }

// Bytes of one element. REQUIRES: not quantized (throws otherwise).
size_t dtype_bytes(DType dtype);

// Bytes of `columns` elements that lie beside each other.
size_t row_bytes(DType dtype, int64_t columns);

// The lower-case name users type and read: "f32", "f16", "bf16", "f64", "i32", "i64", "u8", "q8",
// "q4".
std::string_view dtype_name(DType dtype);
// The one of these types that has the name; throws gsa::Error naming them where none has.
DType type_named(std::string_view name, std::span<const DType> types);

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
  size_t bytes() const;

  // Rows [begin, begin + count) along the first dimension.
  TensorView rows(int64_t begin, int64_t count) const;

  // REQUIRES: dtype is kF32 (asserted).
  float* f32() const;
};

// "[8, 64]"
std::string shape_string(const TensorView& view);

}  // namespace gsa
