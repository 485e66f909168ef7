#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/half.h"
#include "kernels/quantized.h"

namespace gsa::test {

// Numbers for tests; the same seed gives the same.
class Random {
 public:
  explicit Random(uint32_t seed) : generator_(seed) {}

  std::vector<float> normal(int64_t count, double deviation = 1) {
    std::normal_distribution<float> normal(0, static_cast<float>(deviation));
    return fill(count, normal);
  }
  std::vector<float> uniform(int64_t count, double low, double high) {
    std::uniform_real_distribution<float> uniform(static_cast<float>(low),
                                                  static_cast<float>(high));
    return fill(count, uniform);
  }
  // In [0, bound).
  int64_t below(int64_t bound) { return static_cast<int64_t>(generator_() % bound); }
  double real() { return std::uniform_real_distribution<double>(0, 1)(generator_); }
  bool chance(double probability) { return real() < probability; }
  std::mt19937& generator() { return generator_; }

 private:
  template <typename Distribution>
  std::vector<float> fill(int64_t count, Distribution& distribution) {
    std::vector<float> values(count);
    for (float& value : values) value = distribution(generator_);
    return values;
  }

  std::mt19937 generator_;
};

// Stores a row of floats as q8 or q4: between the extremes of every group.
inline void quantize(std::span<const float> values, DType type, std::byte* row) {
  const int64_t columns = static_cast<int64_t>(values.size());
  const auto put = [&](float value, size_t offset, int64_t group) {
    const uint16_t bits = f32_to_f16(value);
    std::memcpy(row + offset + group * sizeof(bits), &bits, sizeof(bits));
    return f16_to_f32(bits);
  };
  for (int64_t g = 0; g < QuantizedRow::groups(columns); ++g) {
    const auto group = values.subspan(g * 32, std::min<int64_t>(32, columns - g * 32));
    const auto [low, high] = std::minmax_element(group.begin(), group.end());
    const bool q8 = type == DType::kQ8;
    const float span = q8 ? 1.01f * std::max(*high, -*low) / 127 : (*high - *low) / 15;
    const float scale = put(span, QuantizedRow::scales_offset(type, columns), g);
    const float minimum = q8 ? 0 : put(*low, QuantizedRow::minima_offset(type, columns), g);
    std::byte* integers = row + g * QuantizedRow::group_bytes(type);
    for (size_t i = 0; i < group.size(); ++i) {
      const int n = static_cast<int>(std::lround((group[i] - minimum) / scale));
      if (q8) {
        integers[i] = static_cast<std::byte>(n);
      } else {
        integers[i % 16] |= static_cast<std::byte>(std::clamp(n, 0, 15) << (i < 16 ? 0 : 4));
      }
    }
  }
}

// Stores floats as another type, rounded.
inline void narrow(std::span<const float> values, const TensorView& to) {
  if (is_quantized(to.dtype)) {
    std::memset(to.data, 0, to.bytes());
    for (int64_t r = 0; r < to.shape[0]; ++r) {
      quantize(values.subspan(r * to.shape[1], to.shape[1]), to.dtype,
               static_cast<std::byte*>(to.rows(r, 1).data));
    }
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (to.dtype == DType::kF32) {
      to.f32()[i] = values[i];
    } else {
      static_cast<uint16_t*>(to.data)[i] =
          to.dtype == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    }
  }
}

// Weights as the host holds them and as the backend sees them.
class Weights {
 public:
  Weights(Backend& backend, DType dtype, std::initializer_list<int64_t> shape,
          const std::vector<float>& values)
      : bytes_(TensorView(nullptr, dtype, shape).bytes()), host(bytes_.data(), dtype, shape) {
    narrow(values, host);
    device = backend.import_weights(host);
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

 private:
  std::vector<std::byte> bytes_;

 public:
  TensorView host, device;
};

// Floats [rows, columns] in the memory of a backend.
class DeviceArray {
 public:
  DeviceArray(Backend& backend, int64_t rows, int64_t columns)
      : backend_(backend),
        rows_(rows),
        columns_(columns),
        buffer_(backend.allocate(rows * columns * sizeof(float))) {}
  DeviceArray(Backend& backend, int64_t rows, int64_t columns, const std::vector<float>& values)
      : DeviceArray(backend, rows, columns) {
    set(values);
  }

  // The first values.size() floats.
  void set(const std::vector<float>& values) {
    backend_.upload(values.data(), values.size() * sizeof(float), buffer_.data());
    backend_.synchronize();
  }
  std::vector<float> get(int64_t rows) const {
    std::vector<float> values(rows * columns_);
    backend_.download(buffer_.data(), values.size() * sizeof(float), values.data());
    return values;
  }
  std::vector<float> get() const { return get(rows_); }
  TensorView view(int64_t rows) const { return {buffer_.data(), DType::kF32, {rows, columns_}}; }
  TensorView view() const { return view(rows_); }
  float* data() const { return buffer_.f32(); }

 private:
  Backend& backend_;
  int64_t rows_, columns_;
  Buffer buffer_;
};

// What a step points to.
struct StepData {
  std::vector<int32_t> tokens;
  std::vector<Segment> segments;
  std::vector<int32_t> logit_rows;

  Step step() const { return {.tokens = tokens, .segments = segments, .logit_rows = logit_rows}; }

  // Segments of these lengths, of the states 0, 1, ...; all tokens are 0.
  static StepData of(const std::vector<int32_t>& counts) {
    StepData data;
    for (int32_t count : counts) {
      const int32_t first = static_cast<int32_t>(data.tokens.size());
      data.segments.push_back({static_cast<int32_t>(data.segments.size()), first, count});
      data.tokens.resize(first + count, 0);
    }
    return data;
  }
  static StepData prompt(int64_t tokens) { return of({static_cast<int32_t>(tokens)}); }
  static StepData decode(int64_t sequences) { return of(std::vector<int32_t>(sequences, 1)); }
};

// The largest relative error of any row of `columns` numbers: norm of the difference by norm of
// what is expected. A NaN anywhere gives infinity. A row is not measured by less than a tenth of
// the average row, since its zeros come from cancellation.
template <typename A, typename B>
double worst_row_error(const A& found, const B& expected, int64_t columns) {
  const size_t size = std::size(expected), n = static_cast<size_t>(columns);
  if (std::size(found) != size || size == 0 || size % n != 0) return HUGE_VAL;
  double all = 0;
  for (double e : expected) all += e * e;
  const double least = 0.01 * all * static_cast<double>(n) / static_cast<double>(size);
  double worst = 0;
  for (size_t row = 0; row < size; row += n) {
    double difference = 0, norm = 0;
    for (size_t i = row; i < row + n; ++i) {
      const double e = expected[i];
      difference += (found[i] - e) * (found[i] - e);
      norm += e * e;
    }
    if (!std::isfinite(difference)) return HUGE_VAL;
    if (difference > 0) worst = std::max(worst, std::sqrt(difference / std::max(norm, least)));
  }
  return worst;
}

}  // namespace gsa::test
