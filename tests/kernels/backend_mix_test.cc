// The recurrence and the short convolutions, against double precision.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/device_data.h"
#include "tests/support/devices.h"
#include "tests/support/equations.h"
#include "tests/support/mix_case.h"

namespace gsa {
namespace {

using test::DeviceArray;
using test::Doubles;
using test::Form;
using test::Gates;
using test::MixCase;
using test::Random;
using test::StepData;
using test::Weights;

using BackendMix = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendMix, testing::ValuesIn(test::kDevices), test::device_name);

using BackendLearnedMap = test::DeviceTypeTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendLearnedMap, testing::ValuesIn(test::device_types()),
                         test::device_type_name);

const std::vector<MixShape> kShapes = {
    {.H = 1, .G = 1, .K = 8, .V = 8, .M = 8},      {.H = 4, .G = 4, .K = 64, .V = 64, .M = 64},
    {.H = 6, .G = 2, .K = 24, .V = 64, .M = 9},    {.H = 3, .G = 1, .K = 64, .V = 24, .M = 200},
    {.H = 8, .G = 2, .K = 128, .V = 128, .M = 64}, {.H = 5, .G = 5, .K = 8, .V = 24, .M = 256},
    {.H = 2, .G = 2, .K = 24, .V = 8, .M = 64}};
const std::vector<MixShape> kLargeShapes = {{.H = 1, .G = 1, .K = 512, .V = 512, .M = 64},
                                            {.H = 2, .G = 1, .K = 1024, .V = 128, .M = 200},
                                            {.H = 1, .G = 1, .K = 128, .V = 1024, .M = 256}};

TEST_P(BackendMix, DecodesOneTokenOfEachSequence) {
  const double tolerance = test::tolerance(device(), DType::kF32, Form::kDecode);
  for (const MixShape& shape : kShapes) {
    for (FeatureMap map : {FeatureMap::kSwish, FeatureMap::kRelu, FeatureMap::kT2R}) {
      const auto backend = this->backend();
      MixCase mix(*backend, shape, map, DType::kF32, 40, 40);
      for (int32_t B : {1, 2, 3, 7, 8, 9, 16, 17, 33, 40}) {
        mix.run(std::vector<int32_t>(B, 1), tolerance);
      }
    }
  }
  for (const MixShape& shape : kLargeShapes) {
    const auto backend = this->backend();
    MixCase mix(*backend, shape, FeatureMap::kSwish, DType::kF32, 9, 9);
    for (int32_t B : {1, 4, 9}) mix.run(std::vector<int32_t>(B, 1), tolerance);
  }
}

TEST_P(BackendMix, PrefillsChunksOfAnyLengthBesideDecode) {
  const double tolerance = test::tolerance(device(), DType::kF32, Form::kChunk);
  for (const MixShape& shape : kShapes) {
    for (FeatureMap map : {FeatureMap::kSwish, FeatureMap::kRelu, FeatureMap::kT2R}) {
      const auto backend = this->backend();
      MixCase mix(*backend, shape, map, DType::kF32, 280, 12);
      for (const std::vector<int32_t>& counts : {std::vector<int32_t>{2},
                                                 {64},
                                                 {65},
                                                 {130},
                                                 {1, 1, 1, 5, 64, 65, 130},
                                                 {130, 1, 2, 3, 1, 65},
                                                 {16, 17, 15, 31, 33, 63}}) {
        mix.run(counts, tolerance);
      }
    }
  }
  for (const MixShape& shape : kLargeShapes) {
    const auto backend = this->backend();
    MixCase mix(*backend, shape, FeatureMap::kSwish, DType::kF32, 140, 6);
    mix.run({1, 1, 5, 64, 65}, tolerance);
    mix.run({130}, tolerance);
  }
}

TEST_P(BackendMix, StaysRightWhereGatesAreExtreme) {
  for (const MixShape& shape : {kShapes[1], kShapes[2], kShapes[4]}) {
    const auto backend = this->backend();
    MixCase mix(*backend, shape, FeatureMap::kSwish, DType::kF32, 280, 12, Gates::kExtreme);
    for (int32_t B : {1, 12, 12}) {
      mix.run(std::vector<int32_t>(B, 1), test::tolerance(device(), DType::kF32, Form::kDecode));
    }
    for (const std::vector<int32_t>& counts :
         {std::vector<int32_t>{65}, {1, 5, 64, 130}, {130, 1, 65}}) {
      mix.run(counts, test::tolerance(device(), DType::kF32, Form::kChunk));
    }
  }
}

TEST_P(BackendLearnedMap, TakesTheTypeOfItsWeights) {
  for (const MixShape& shape : {kShapes[0], kShapes[2], kShapes[4]}) {
    const auto backend = this->backend();
    MixCase mix(*backend, shape, FeatureMap::kT2R, dtype(), 140, 17);
    for (int32_t B : {1, 3, 16}) {
      mix.run(std::vector<int32_t>(B, 1), test::tolerance(device(), dtype(), Form::kDecode));
    }
    mix.run({1, 5, 64, 65}, test::tolerance(device(), dtype(), Form::kChunk));
  }
}

// Short convolutions on a backend beside the equation, from the same history.
class ConvolveCase {
 public:
  ConvolveCase(Backend& backend, int64_t channels, int64_t width)
      : backend_(backend),
        channels_(channels),
        width_(width),
        kept_((width - 1) * channels),
        random_(9),
        weight_(backend, DType::kF32, {channels, width}, random_.normal(channels * width)),
        history_(backend, kStates, kept_),
        qkvf_(backend, kTokens, columns()) {
    backend.reserve({.tokens = kTokens, .segments = kStates, .logit_rows = 1}, {1, 1, 8, 8, 8}, 64,
                    64);
    const std::vector<float> initial = random_.normal(kStates * kept_);
    history_.set(initial);
    for (int64_t s = 0; s < kStates; ++s) {
      inputs_[s].emplace_back(channels);  // falls out with the first token
      for (int64_t j = 0; j + 1 < width; ++j) {
        const float* past = initial.data() + s * kept_ + j * channels;
        inputs_[s].emplace_back(past, past + channels);
      }
    }
  }

  void run(const std::vector<int32_t>& counts, double tolerance) {
    StepData data = StepData::of(counts);
    for (Segment& s : data.segments) s.state = (s.state * 4 + 3) % kStates;
    const int64_t T = static_cast<int64_t>(data.tokens.size());
    const std::vector<float> x = random_.normal(T * columns());
    qkvf_.set(x);
    test::run_step(backend_, data.step(), [&] {
      backend_.convolve({.weight = weight_.device,
                         .qkvf = qkvf_.view(T),
                         .history = width_ > 1 ? history_.data() : nullptr});
    });
    EXPECT_LT(test::worst_row_error(qkvf_.get(T), equation(data, x), columns()), tolerance);
    expect_history();
  }

 private:
  static constexpr int64_t kStates = 9, kTokens = 220, kGateColumns = 30;
  int64_t columns() const { return channels_ + kGateColumns; }

  // The gate columns stay as they are.
  Doubles equation(const StepData& data, const std::vector<float>& x) {
    Doubles all;
    for (const Segment& s : data.segments) {
      for (int32_t t = s.first; t < s.first + s.count; ++t) {
        Doubles row(x.begin() + t * columns(), x.begin() + (t + 1) * columns());
        test::convolve(weight_.host, inputs_[s.state], row);
        all.insert(all.end(), row.begin(), row.end());
      }
    }
    return all;
  }

  // Inputs are kept as they came, of every state.
  void expect_history() const {
    const std::vector<float> floats = history_.get();
    for (int64_t s = 0; s < kStates; ++s) {
      for (int64_t j = 0; j + 1 < width_; ++j) {
        const float* past = floats.data() + s * kept_ + j * channels_;
        ASSERT_EQ(Doubles(past, past + channels_), inputs_[s][j + 1]) << "state " << s;
      }
    }
  }

  Backend& backend_;
  int64_t channels_, width_, kept_;
  Random random_;
  Weights weight_;
  DeviceArray history_, qkvf_;
  std::array<std::vector<Doubles>, kStates> inputs_;  // oldest first
};

TEST_P(BackendMix, ConvolvesOverTheBordersOfSteps) {
  const double tolerance = test::tolerance(device(), DType::kF32, Form::kProduct);
  for (int64_t width : {1, 2, 4}) {
    for (int64_t channels : {40, 300}) {
      SCOPED_TRACE(testing::Message() << channels << " channels, width " << width);
      const auto backend = this->backend();
      ConvolveCase convolution(*backend, channels, width);
      for (const std::vector<int32_t>& counts : {std::vector<int32_t>{1, 1, 1},
                                                 {130, 1, 2, 3, 65},
                                                 {1, 1, 1, 1, 1, 1, 1, 1, 1},
                                                 {5, 3, 1}}) {
        convolution.run(counts, tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace gsa
