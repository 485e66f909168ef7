#include "checkpoint/quantize.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/convert.h"
#include "kernels/quantized.h"
#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"

namespace gsa {
namespace {

using test::fixture;
using test::HfSource;
using test::TemporaryFolder;

constexpr DType kTypes[] = {DType::kQ8, DType::kQ4};

std::vector<float> normal(int64_t count, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0, 0.02f);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// One row stored and read back.
std::vector<float> round_trip(const std::vector<float>& values, DType type) {
  const auto columns = static_cast<int64_t>(values.size());
  std::vector<std::byte> row(row_bytes(type, columns));
  EXPECT_EQ(quantize_rows(values.data(), 1, columns, type, row.data()), nullptr);
  std::vector<float> out;
  for (int64_t c = 0; c < columns; ++c) {
    out.push_back(QuantizedRow::value(row.data(), type, columns, c));
  }
  return out;
}

double relative_error(const std::vector<float>& found, const std::vector<float>& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(found[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  return std::sqrt(difference / norm);
}

TEST(Quantize, StoresRowsOfGroupsInWholeSixteenBytes) {
  EXPECT_EQ(row_bytes(DType::kQ8, 2048), 2048u * 34 / 32);
  EXPECT_EQ(row_bytes(DType::kQ4, 2048), 2048u * 20 / 32);
  EXPECT_EQ(row_bytes(DType::kQ8, 33), 80u);  // 2 * 34 and a rest
  EXPECT_EQ(row_bytes(DType::kQ4, 1), 32u);
  EXPECT_EQ(row_bytes(DType::kQ4, 0), 0u);
  EXPECT_EQ(TensorView(nullptr, DType::kQ8, {3, 40}).bytes(), 3u * 80);
}

// Between the extremes of 32 normal numbers, which lie 4.1 deviations apart on average, 15 steps
// are 0.27 wide, and an error that is uniform in a step has a twelfth of its square: 0.079. With
// 254 steps over twice the largest of 32, 2.4 on average: 0.0055.
TEST(Quantize, ErrsByNoMoreThanItsGridsStepsSay) {
  const std::vector<float> values = normal(32 * 1000, 1);
  EXPECT_LT(relative_error(round_trip(values, DType::kQ8), values), 0.0055);
  EXPECT_LT(relative_error(round_trip(values, DType::kQ4), values), 0.079);
}

TEST(Quantize, LosesNothingThatAGridHolds) {
  // Scales and minima of a few bits, integers of all sizes, in groups that reach both ends.
  for (DType type : kTypes) {
    std::mt19937 generator(2);
    std::vector<float> values;
    for (int g = 0; g < 50; ++g) {
      const int levels = type == DType::kQ8 ? 255 : 16, low = type == DType::kQ8 ? -127 : 0;
      const float scale = std::ldexp(1.0f + static_cast<float>(g % 8) / 8, -6 - g % 5);
      const float minimum = type == DType::kQ8 ? 0 : -scale * static_cast<float>(g % 16);
      for (int i = 0; i < 32; ++i) {
        const int integer =
            i < 2 ? low + i * (levels - 1) : low + static_cast<int>(generator() % levels);
        values.push_back(scale * static_cast<float>(integer) + minimum);
      }
    }
    EXPECT_EQ(round_trip(values, type), values) << dtype_name(type);
  }
}

TEST(Quantize, TakesRowsThatEndWithinAGroup) {
  for (DType type : kTypes) {
    for (int64_t columns : {1, 15, 16, 17, 31, 33, 75}) {
      const std::vector<float> values = normal(columns, 3);
      EXPECT_LT(relative_error(round_trip(values, type), values), type == DType::kQ8 ? 0.01 : 0.15)
          << columns;
    }
  }
}

TEST(Quantize, KeepsZerosAndConstants) {
  for (DType type : kTypes) {
    EXPECT_EQ(round_trip(std::vector<float>(40, 0.0f), type), std::vector<float>(40, 0.0f));
    const std::vector<float> constant(40, -0.125f);
    EXPECT_LT(relative_error(round_trip(constant, type), constant), 5e-4);  // of a float16
  }
}

TEST(Quantize, GivesBackTheFirstValueThatNoScaleHolds) {
  for (DType type : kTypes) {
    for (float value : {1e5f, -4e4f, std::numeric_limits<float>::infinity(),
                        std::numeric_limits<float>::quiet_NaN()}) {
      std::vector<float> values = normal(64, 4);
      values[41] = value;
      std::vector<std::byte> row(row_bytes(type, 64));
      EXPECT_EQ(quantize_rows(values.data(), 1, 64, type, row.data()), values.data() + 41);
    }
  }
}

// Checkpoints ------------------------------------------------------------------------------------

TEST(QuantizedCheckpoint, KeepsWhatFeedsTheMemoryAtSixteenBits) {
  const TemporaryFolder folder;
  for (DType type : kTypes) {
    convert(fixture("t2r"), folder / "m", {.type = type, .force = true});  // f16
    const Checkpoint model = Checkpoint::open(folder / "m");
    EXPECT_EQ(model.type(), dtype_name(type));
    const ModelWeights& w = model.weights();
    const GsaConfig& c = model.config();
    EXPECT_EQ(w.embeddings.dtype, DType::kF16);
    EXPECT_EQ(w.lm_head.dtype, type);
    for (const LayerWeights& layer : w.layers) {
      EXPECT_EQ(layer.f.dtype, DType::kF16);
      EXPECT_EQ(layer.f.shape[0], c.f_rows());
      EXPECT_EQ(layer.feature_map.dtype, DType::kF16);
      EXPECT_EQ(layer.qkvf.shape[0], c.qkvf_rows() - c.f_rows());
      for (const TensorView& view : {layer.qkvf, layer.o_proj, layer.gate_up, layer.down}) {
        EXPECT_EQ(view.dtype, type);
        EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 64, 0u);
      }
      EXPECT_EQ(layer.attn_norm.dtype, DType::kF32);
    }
  }
  convert(fixture("gqa"), folder / "m", {.type = DType::kQ8, .force = true});
  EXPECT_EQ(Checkpoint::open(folder / "m").weights().embeddings.dtype, DType::kBF16);
  convert(fixture("base"), folder / "m", {.type = DType::kQ8, .force = true});  // f32
  EXPECT_EQ(Checkpoint::open(folder / "m").weights().embeddings.dtype, DType::kF16);
}

TEST(QuantizedCheckpoint, GivesATiedHeadASmallCopyOfItsOwn) {
  const TemporaryFolder folder;
  HfSource source;
  source.config["tie_word_embeddings"] = true;
  source.tensors.erase("lm_head.weight");
  convert(source.write(), folder / "m", {.type = DType::kQ8});
  const Checkpoint model = Checkpoint::open(folder / "m");
  const ModelWeights& w = model.weights();
  EXPECT_EQ(w.lm_head.dtype, DType::kQ8);
  EXPECT_EQ(shape_string(w.lm_head), shape_string(w.embeddings));
  const int64_t D = w.lm_head.shape[1];
  std::vector<float> found, kept;
  for (int64_t i = 0; i < w.lm_head.elements(); ++i) {
    const auto* row = static_cast<const std::byte*>(w.lm_head.rows(i / D, 1).data);
    found.push_back(QuantizedRow::value(row, DType::kQ8, D, i % D));
    kept.push_back(f16_to_f32(static_cast<const uint16_t*>(w.embeddings.data)[i]));
  }
  EXPECT_LT(relative_error(found, kept), 0.0055);
}

TEST(QuantizedCheckpoint, NamesATensorThatCannotBeStored) {
  const TemporaryFolder folder;
  HfSource source;
  const float infinite = std::numeric_limits<float>::infinity();
  std::memcpy(source.tensors["model.layers.0.mlp.down_proj.weight"].bytes.data() + 40, &infinite,
              4);
  EXPECT_EQ(test::error_of([&] { convert(source.write(), folder / "m", {.type = DType::kQ4}); }),
            source.path.string() +
                ": tensor model.layers.0.mlp.down_proj.weight holds inf, which does not fit q4; "
                "convert to another type");
  EXPECT_THAT(folder.names(), testing::IsEmpty());
}

}  // namespace
}  // namespace gsa
