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

namespace gsa {
namespace {

using test::DeviceArray;
using test::Doubles;
using test::Form;
using test::Random;
using test::StepData;
using test::Weights;

using BackendMix = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendMix, testing::ValuesIn(test::kDevices), test::device_name);

using BackendLearnedMap = test::DeviceTypeTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendLearnedMap, testing::ValuesIn(test::device_types()),
                         test::device_type_name);

std::string words(const MixShape& s) {
  return "H " + std::to_string(s.H) + " G " + std::to_string(s.G) + " K " + std::to_string(s.K) +
         " V " + std::to_string(s.V) + " M " + std::to_string(s.M);
}

// Where states lie in memory, as in a pool: [hk | hv] and a rest that no operation may touch.
struct StateLayout {
  explicit StateLayout(const MixShape& s)
      : hk(s.G * s.K * s.M), hv(s.G * s.M * s.V), stride((hk + hv) / 16 * 16 + 32) {}
  int64_t hk, hv, stride;
};

enum class Gates { kUsual, kExtreme };

// A recurrence on a backend beside the equation, from the same memories and over the same steps.
class MixCase {
 public:
  MixCase(Backend& backend, const MixShape& shape, FeatureMap map, DType dtype, int64_t tokens,
          int64_t states, Gates gates = Gates::kUsual)
      : backend_(backend),
        s_(shape),
        layout_(shape),
        width_(s_.H * s_.K + s_.G * (s_.K + s_.V + s_.M)),
        states_(states),
        gates_(gates),
        random_(static_cast<uint32_t>(s_.K * 7 + s_.V * 3 + s_.M)),
        feature_(backend, dtype, {s_.K, s_.K},
                 random_.normal(s_.K * s_.K, 1.5 / std::sqrt(static_cast<double>(s_.K)))),
        equation_{s_, map, feature_.host, 8},
        qkvf_(backend, tokens, width_),
        out_(backend, tokens, s_.H * s_.V),
        memory_(backend, states, layout_.stride) {
    backend.reserve({.tokens = tokens, .segments = states, .logit_rows = 1}, s_, s_.H * s_.V, 64);
    const std::vector<float> initial = random_.normal(states * layout_.stride, 0.5);
    memory_.set(initial);
    expected_.assign(initial.begin(), initial.end());
  }

  // Runs segments of the given lengths, of states in shuffled order, and compares what comes out
  // and every memory.
  void run(const std::vector<int32_t>& counts, double tolerance) {
    SCOPED_TRACE(words(s_) + ", " + std::to_string(counts.size()) + " segments, the first of " +
                 std::to_string(counts[0]));
    StepData data = StepData::of(counts);
    std::vector<int32_t> order(states_);
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_.generator());
    for (size_t i = 0; i < counts.size(); ++i) data.segments[i].state = order[i];
    const int64_t T = static_cast<int64_t>(data.tokens.size());
    const std::vector<float> qkvf = projections(T);
    qkvf_.set(qkvf);
    out_.set(std::vector<float>(T * s_.H * s_.V, 7.0f));
    test::run_step(backend_, data.step(), [&] {
      backend_.mix({.shape = s_,
                    .feature_map = equation_.feature_map,
                    .feature_weight =
                        equation_.feature_map == FeatureMap::kT2R ? feature_.device : TensorView(),
                    .normalizer = equation_.normalizer,
                    .qkvf = qkvf_.view(T),
                    .hk = memory_.data(),
                    .hv = memory_.data() + layout_.hk,
                    .state_stride = layout_.stride,
                    .out = out_.view(T)});
    });
    EXPECT_LT(test::worst_row_error(out_.get(T), equation(data, qkvf), s_.H * s_.V), tolerance);
    compare_memories(data, tolerance);
  }

 private:
  // q so large that the scores differ by about one, whatever K: softmax is then neither flat nor a
  // maximum.
  std::vector<float> projections(int64_t T) {
    std::vector<float> qkvf = random_.normal(T * width_);
    const float scale = std::min(1.0f, 4 / std::sqrt(static_cast<float>(s_.K)));
    for (int64_t t = 0; t < T; ++t) {
      float* row = qkvf.data() + t * width_;
      for (int64_t i = 0; i < s_.H * s_.K; ++i) row[i] *= scale;
      float* f = row + width_ - s_.G * s_.M;
      for (int64_t i = 0; i < s_.G * s_.M; ++i) f[i] = gate(f[i]);
    }
    return qkvf;
  }

  // Extreme: f = -800 forgets all, since sigmoid(f)^(1/8) = 4e-44 has no normal float; f = 80
  // forgets and writes nothing.
  float gate(float usual) {
    if (gates_ == Gates::kUsual) return 2 * usual;
    const int64_t kind = random_.below(10);
    return kind < 5 ? 2 * usual : kind < 7 ? 80.0f : kind < 9 ? -80.0f : -800.0f;
  }

  Doubles equation(const StepData& data, const std::vector<float>& qkvf) {
    Doubles out;
    for (const Segment& segment : data.segments) {
      double* state = expected_.data() + segment.state * layout_.stride;
      for (int32_t t = segment.first; t < segment.first + segment.count; ++t) {
        const Doubles row(qkvf.begin() + t * width_, qkvf.begin() + (t + 1) * width_);
        const Doubles o = equation_.step(row, state, state + layout_.hk);
        out.insert(out.end(), o.begin(), o.end());
      }
    }
    return out;
  }

  // Each head's memory of the step's states within the tolerance, everything else untouched. The
  // equation goes on from the device's memories, so that errors do not add up over steps.
  void compare_memories(const StepData& data, double tolerance) {
    const std::vector<float> found = memory_.get();
    std::vector<bool> written(expected_.size(), false);
    for (const Segment& segment : data.segments) {
      const int64_t begin = segment.state * layout_.stride;
      const auto error = [&](int64_t first, int64_t count, int64_t row) {
        return test::worst_row_error(std::span(found).subspan(first, count),
                                     std::span(expected_).subspan(first, count), row);
      };
      EXPECT_LT(error(begin, layout_.hk, s_.K * s_.M), tolerance) << "hk of " << segment.state;
      EXPECT_LT(error(begin + layout_.hk, layout_.hv, s_.M * s_.V), tolerance)
          << "hv of " << segment.state;
      std::fill_n(written.begin() + begin, layout_.hk + layout_.hv, true);
    }
    for (size_t i = 0; i < found.size(); ++i) {
      if (!written[i]) {
        ASSERT_EQ(found[i], static_cast<float>(expected_[i])) << "at " << i << ", not of the step";
      }
    }
    expected_.assign(found.begin(), found.end());
  }

  Backend& backend_;
  MixShape s_;
  StateLayout layout_;
  int64_t width_, states_;
  Gates gates_;
  Random random_;
  Weights feature_;
  test::MixEquation equation_;
  DeviceArray qkvf_, out_, memory_;
  Doubles expected_;
};

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
        stride_((width - 1) * channels + 16),
        random_(9),
        weight_(backend, DType::kF32, {channels, width}, random_.normal(channels * width)),
        history_(backend, kStates, stride_),
        qkvf_(backend, kTokens, columns()) {
    backend.reserve({.tokens = kTokens, .segments = kStates, .logit_rows = 1}, {1, 1, 8, 8, 8}, 64,
                    64);
    const std::vector<float> initial = random_.normal(kStates * stride_);
    history_.set(initial);
    for (int64_t s = 0; s < kStates; ++s) {
      inputs_[s].emplace_back(channels);  // falls out with the first token
      for (int64_t j = 0; j + 1 < width; ++j) {
        const float* past = initial.data() + s * stride_ + j * channels;
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
                         .history = width_ > 1 ? history_.data() : nullptr,
                         .state_stride = stride_});
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
        const float* past = floats.data() + s * stride_ + j * channels_;
        ASSERT_EQ(Doubles(past, past + channels_), inputs_[s][j + 1]) << "state " << s;
      }
    }
  }

  Backend& backend_;
  int64_t channels_, width_, stride_;
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
