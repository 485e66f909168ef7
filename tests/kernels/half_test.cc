#include "kernels/half.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

namespace gsa {
namespace {

// The nearest multiple of the format's last place at `value`, ties to even, in double arithmetic.
double nearest(float value, int fraction_bits, int least_exponent) {
  if (value == 0) return value;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  const double place = std::ldexp(1.0, exponent - fraction_bits);
  return std::nearbyint(value / place) * place;
}

template <typename Visit>
void for_many_floats(Visit visit) {
  // A stride that is odd, so that low bits vary, over all exponents and both signs.
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 9973) {
    visit(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
}

TEST(Half, WidensEveryF16ToItsExactValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double sign = bits & 0x8000 ? -1 : 1;
    const float value = f16_to_f32(static_cast<uint16_t>(bits));
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(value), fraction != 0) << bits;
      if (fraction == 0) {
        EXPECT_EQ(value, sign * std::numeric_limits<float>::infinity());
      }
    } else {
      const double expected =
          exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      EXPECT_EQ(value, sign * expected) << bits;
      EXPECT_EQ(std::signbit(value), sign < 0) << bits;
    }
  }
}

TEST(Half, NarrowsBackWhatItWidened) {
  for (uint32_t i = 0; i < 0x10000; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    if (!std::isnan(f16_to_f32(bits))) {
      EXPECT_EQ(f32_to_f16(f16_to_f32(bits)), bits);
    }
    if (!std::isnan(bf16_to_f32(bits))) {
      EXPECT_EQ(f32_to_bf16(bf16_to_f32(bits)), bits);
    }
  }
}

TEST(Half, RoundsToTheNearestF16TiesToEven) {
  for_many_floats([](float value) {
    const uint16_t bits = f32_to_f16(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(bits)));
    } else if (std::fabs(nearest(value, 10, -14)) >= 65536) {
      EXPECT_EQ(bits, std::signbit(value) ? 0xfc00 : 0x7c00) << value;
    } else {
      EXPECT_EQ(f16_to_f32(bits), nearest(value, 10, -14)) << value;
      EXPECT_EQ(std::signbit(f16_to_f32(bits)), std::signbit(value)) << value;
    }
  });
  EXPECT_EQ(f32_to_f16(65519.996f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(1 + 0x1p-11f), 0x3c00);      // a tie, down to even
  EXPECT_EQ(f32_to_f16(1 + 3 * 0x1p-11f), 0x3c02);  // a tie, up to even
  EXPECT_EQ(f32_to_f16(0x1p-25f), 0x0000);
  EXPECT_EQ(f32_to_f16(0x1.8p-24f), 0x0002);
}

TEST(Half, RoundsToTheNearestBf16TiesToEven) {
  for_many_floats([](float value) {
    const uint16_t bits = f32_to_bf16(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(bits)));
    } else if (std::isinf(value) || std::fabs(nearest(value, 7, -126)) >= 0x1p128) {
      EXPECT_EQ(bits, std::signbit(value) ? 0xff80 : 0x7f80) << value;
    } else {
      EXPECT_EQ(bf16_to_f32(bits), nearest(value, 7, -126)) << value;
    }
  });
}

TEST(Half, KeepsInfinitiesAndNaNsWhosePayloadIsCutAway) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float low_payload = std::bit_cast<float>(0x7f800001u);
  EXPECT_EQ(f32_to_f16(infinity), 0x7c00);
  EXPECT_EQ(f32_to_f16(-infinity), 0xfc00);
  EXPECT_EQ(f32_to_bf16(-infinity), 0xff80);
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(low_payload))));
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(low_payload))));
}

}  // namespace
}  // namespace gsa
