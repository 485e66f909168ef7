#include "checkpoint/quantize.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>

#include "kernels/half.h"
#include "kernels/quantized.h"

namespace gsa {
namespace {

constexpr int kGroup = QuantizedRow::kGroup;

// A group's weights are scale * integer + minimum.
struct Grid {
  float scale = 0, minimum = 0;
};

using Integers = std::array<int, kGroup>;

// The nearest integers of a grid. Filled-up columns get zero.
Integers nearest(const float* w, int n, const Grid& grid, float low, float high) {
  Integers integers = {};
  const float inverse = grid.scale == 0 ? 0 : 1 / grid.scale;
  for (int i = 0; i < n; ++i) {
    const float place = std::clamp((w[i] - grid.minimum) * inverse, low, high);
    integers[i] = static_cast<int>(std::nearbyint(place));
  }
  return integers;
}

double squared_error(const float* w, int n, const Integers& q, const Grid& grid) {
  double error = 0;
  for (int i = 0; i < n; ++i) {
    const double e = w[i] - (static_cast<double>(grid.scale) * q[i] + grid.minimum);
    error += e * e;
  }
  return error;
}

float as_half(double value) { return f16_to_f32(f32_to_f16(static_cast<float>(value))); }

// The grid through the origin that fits best for these integers.
Grid fit_scale(const float* w, int n, const Integers& q) {
  double wq = 0, qq = 0;
  for (int i = 0; i < n; ++i) {
    wq += static_cast<double>(w[i]) * q[i];
    qq += static_cast<double>(q[i]) * q[i];
  }
  return {qq > 0 ? as_half(wq / qq) : 0.0f, 0};
}

// The same with a minimum: the line of regression.
Grid fit_line(const float* w, int n, const Integers& q, const Grid& otherwise) {
  double sw = 0, sq = 0, swq = 0, sqq = 0;
  for (int i = 0; i < n; ++i) {
    sw += w[i];
    sq += q[i];
    swq += static_cast<double>(w[i]) * q[i];
    sqq += static_cast<double>(q[i]) * q[i];
  }
  const double determinant = n * sqq - sq * sq;
  if (determinant <= 0) return otherwise;
  const double scale = (n * swq - sq * sw) / determinant;
  return {as_half(scale), as_half((sw - scale * sq) / n)};
}

// Keeps the best of the grids it is shown.
class Best {
 public:
  Best(const float* w, int n, float low, float high) : w_(w), n_(n), low_(low), high_(high) {}

  void consider(const Grid& grid) {
    const Integers q = nearest(w_, n_, grid, low_, high_);
    const double error = squared_error(w_, n_, q, grid);
    if (!(error < error_)) return;
    error_ = error;
    grid_ = grid;
    integers_ = q;
  }

  const Grid& grid() const { return grid_; }
  const Integers& integers() const { return integers_; }

 private:
  const float* w_;
  int n_;
  float low_, high_;
  double error_ = HUGE_VAL;
  Grid grid_;
  Integers integers_ = {};
};

// The steps by which the extremes of a group are moved beyond or within the ends of the grid.
constexpr float kQ8Steps[] = {-0.8f, -0.4f, 0, 0.4f};
constexpr float kQ4Steps[] = {-1, -0.75f, -0.5f, -0.25f, 0, 0.25f, 0.5f, 0.75f, 1};
constexpr float kQ4Shifts[] = {-0.5f, -0.25f, 0, 0.25f, 0.5f};

Best q8_group(const float* w, int n) {
  float largest = 0;
  for (int i = 0; i < n; ++i) largest = std::max(largest, std::fabs(w[i]));
  Best best(w, n, -127, 127);
  for (float step : kQ8Steps) {
    const Grid grid = {largest / (127 + step), 0};
    best.consider({as_half(grid.scale), 0});
    best.consider(fit_scale(w, n, nearest(w, n, grid, -127, 127)));
  }
  return best;
}

Best q4_group(const float* w, int n) {
  const auto [low, high] = std::minmax_element(w, w + n);
  Best best(w, n, 0, 15);
  best.consider({as_half((*high - *low) / 15), as_half(*low)});
  for (float step : kQ4Steps) {
    for (float shift : kQ4Shifts) {
      const float scale = (*high - *low) / (15 + step);
      const Grid grid = {scale, *low - shift * scale};
      best.consider(fit_line(w, n, nearest(w, n, grid, 0, 15), {0, as_half(*low)}));
    }
  }
  return best;
}

void put_half(float value, std::byte* at) {
  const uint16_t bits = f32_to_f16(value);
  std::memcpy(at, &bits, sizeof(bits));
}

void quantize_row(const float* values, int64_t columns, DType type, std::byte* row) {
  std::fill_n(row, QuantizedRow::bytes(type, columns), std::byte{0});
  std::byte* scales = row + QuantizedRow::scales_offset(type, columns);
  std::byte* minima = row + QuantizedRow::minima_offset(type, columns);
  for (int64_t g = 0; g < QuantizedRow::groups(columns); ++g) {
    const int n = static_cast<int>(std::min<int64_t>(kGroup, columns - g * kGroup));
    const float* w = values + g * kGroup;
    std::byte* integers = row + g * QuantizedRow::group_bytes(type);
    const Best best = type == DType::kQ8 ? q8_group(w, n) : q4_group(w, n);
    const Integers& q = best.integers();
    put_half(best.grid().scale, scales + g * sizeof(uint16_t));
    if (type == DType::kQ8) {
      for (int i = 0; i < kGroup; ++i) integers[i] = static_cast<std::byte>(q[i]);
    } else {
      put_half(best.grid().minimum, minima + g * sizeof(uint16_t));
      for (int i = 0; i < 16; ++i) integers[i] = static_cast<std::byte>(q[i] | q[i + 16] << 4);
    }
  }
}

}  // namespace

const float* quantize_rows(const float* values, int64_t rows, int64_t columns, DType type,
                           std::byte* out) {
  assert(is_quantized(type));
  constexpr float kLargest = 65504 / 2;  // in float16 with room for the difference of two
  const auto misfit = [](float w) { return !(std::fabs(w) <= kLargest); };
  const float* end = values + rows * columns;
  if (const float* found = std::find_if(values, end, misfit); found != end) return found;
  for (int64_t r = 0; r < rows; ++r) {
    quantize_row(values + r * columns, columns, type, out + r * QuantizedRow::bytes(type, columns));
  }
  return nullptr;
}

}  // namespace gsa
