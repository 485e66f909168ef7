// The recurrence with memories of 16 bits, against double precision that rounds as it must.

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/half.h"
#include "tests/support/device_data.h"
#include "tests/support/devices.h"
#include "tests/support/mix_case.h"

namespace gsa {
namespace {

using test::Form;
using test::Gates;
using test::MixCase;

// Devices and types of the memories.
class BackendStateType : public test::DeviceTypeTest {
 protected:
  // The largest relative error of one rounding: significands have 11 and 8 bits.
  double unit() const { return dtype() == DType::kF16 ? 0x1p-11 : 0x1p-8; }

  // Where float32 and double precision round an element to different sides it is off by two units.
  // That happens to few, but in the smallest memory here, of 216 elements, a single one makes
  // 2 / sqrt(216) = 0.14 units of the norm, or twice that where it is a large one. Never to
  // round, or to cut off, would make 0.4 units and more.
  double tolerance(Form form) const {
    return test::tolerance(device(), DType::kF32, form) + (rounds_once(form) ? 0 : 0.3) * unit();
  }
  // What a GPU rounds once at the end of a segment the equation does not.
  double memory_tolerance(Form form) const {
    return test::tolerance(device(), DType::kF32, form) + (rounds_once(form) ? 1 : 0.3) * unit();
  }
  bool rounds_once(Form form) const { return device() == "cuda" && form == Form::kChunk; }

  // hk as it is stored after one token of these projections in an empty state of 16 bits.
  std::vector<uint16_t> stored_hk(const MixShape& s, FeatureMap map,
                                  const std::vector<float>& row) {
    const auto backend = this->backend();
    backend->reserve({.tokens = 1, .segments = 1, .logit_rows = 1}, s, s.H * s.V, 64);
    const test::DeviceArray qkvf(*backend, 1, static_cast<int64_t>(row.size()), row);
    const test::DeviceArray out(*backend, 1, s.H * s.V);
    const int64_t hk = s.G * s.K * s.M, hv = s.G * s.M * s.V;
    const Buffer memory = backend->allocate((hk + hv) * sizeof(uint16_t));
    test::run_step(*backend, test::StepData::decode(1).step(), [&] {
      backend->mix({.shape = s,
                    .feature_map = map,
                    .feature_weight = {},
                    .qkvf = qkvf.view(),
                    .state_type = dtype(),
                    .hk = memory.data(),
                    .hv = static_cast<uint16_t*>(memory.data()) + hk,
                    .out = out.view()});
    });
    std::vector<uint16_t> bits(hk);
    backend->download(memory.data(), hk * sizeof(uint16_t), bits.data());
    return bits;
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, BackendStateType, testing::ValuesIn(test::types_of_16_bits()),
                         test::device_type_name);

// Of many heads to a memory; of sizes that are multiples of 8, of 4 alone, and of nothing; with
// more columns than threads in a block.
const std::vector<MixShape> kShapes = {
    {.H = 4, .G = 4, .K = 64, .V = 64, .M = 64},   {.H = 6, .G = 1, .K = 33, .V = 100, .M = 64},
    {.H = 6, .G = 2, .K = 24, .V = 64, .M = 9},    {.H = 4, .G = 2, .K = 40, .V = 24, .M = 200},
    {.H = 1, .G = 1, .K = 512, .V = 512, .M = 64}, {.H = 2, .G = 1, .K = 20, .V = 301, .M = 12}};

TEST_P(BackendStateType, DecodesOneTokenOfEachSequence) {
  for (const MixShape& shape : kShapes) {
    const auto backend = this->backend();
    MixCase mix(*backend, shape, FeatureMap::kSwish, DType::kF32, 140, 140, Gates::kUsual, dtype());
    for (int32_t B : {1, 7, 140}) {
      mix.run(std::vector<int32_t>(B, 1), tolerance(Form::kDecode),
              memory_tolerance(Form::kDecode));
    }
  }
}

TEST_P(BackendStateType, PrefillsChunksOfAnyLengthBesideDecode) {
  for (const MixShape& shape : kShapes) {
    const auto backend = this->backend();
    MixCase mix(*backend, shape, FeatureMap::kSwish, DType::kF32, 280, 12, Gates::kUsual, dtype());
    for (const std::vector<int32_t>& counts :
         {std::vector<int32_t>{2}, {130}, {1, 1, 5, 64, 65, 130}}) {
      mix.run(counts, tolerance(Form::kChunk), memory_tolerance(Form::kChunk));
    }
  }
}

// With f = -800 a token replaces all that a memory holds, and with relu hk then holds k itself: so
// any number above zero can be seen stored.
TEST_P(BackendStateType, RoundsToNearestEven) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto bits = [](uint32_t x) { return std::bit_cast<float>(x); };
  // Halfway between neighbours and beside that, in both formats; carries into the exponent; the
  // largest numbers of f16 and of all, and what is rounded to infinity; subnormals of f16.
  const std::vector<float> keys = {1.0f,
                                   bits(0x3f808000),
                                   bits(0x3f808001),
                                   bits(0x3f818000),
                                   bits(0x3f817fff),
                                   bits(0x3fffffff),
                                   bits(0x3f801000),
                                   bits(0x3f801001),
                                   bits(0x3f803000),
                                   bits(0x3f802fff),
                                   65504,
                                   65519,
                                   65520,
                                   1e6f,
                                   std::numeric_limits<float>::max(),
                                   kInfinity,
                                   0x1p-14f,
                                   0x1.004p-15f,
                                   0x1p-24f,
                                   0x1p-25f,
                                   0x1.8p-25f,
                                   0x1.8p-24f,
                                   0x1p-26f,
                                   3e-30f};
  const int64_t K = static_cast<int64_t>(keys.size());
  for (int64_t M : {1, 8, 64}) {
    SCOPED_TRACE(M);
    std::vector<float> row(K, 0.0f);
    row.insert(row.end(), keys.begin(), keys.end());
    row.resize(row.size() + 8, 0.0f);
    row.resize(row.size() + M, -800.0f);
    const std::vector<uint16_t> found = stored_hk({1, 1, K, 8, M}, FeatureMap::kRelu, row);
    for (int64_t i = 0; i < K * M; ++i) {
      const float key = keys[i / M];
      const uint16_t expected = dtype() == DType::kF16 ? f32_to_f16(key) : f32_to_bf16(key);
      ASSERT_EQ(found[i], expected) << key << " in slot " << i % M;
    }
  }
}

TEST_P(BackendStateType, KeepsANanANan) {
  const int64_t K = 8, M = 16;
  std::vector<float> row(2 * K + 8 + M, 1);
  // All bits set: to add half of the last place kept would make it a zero.
  std::fill_n(row.begin() + K, K, std::bit_cast<float>(0x7fffffff));
  for (uint16_t bits : stored_hk({1, 1, K, 8, M}, FeatureMap::kSwish, row)) {
    const float value = dtype() == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
    ASSERT_TRUE(std::isnan(value)) << bits;
  }
}

}  // namespace
}  // namespace gsa
