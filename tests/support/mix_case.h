#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/device_data.h"
#include "tests/support/devices.h"
#include "tests/support/equations.h"

namespace gsa::test {

inline std::string words(const MixShape& s) {
  return "H " + std::to_string(s.H) + " G " + std::to_string(s.G) + " K " + std::to_string(s.K) +
         " V " + std::to_string(s.V) + " M " + std::to_string(s.M);
}

// Where the memories of all states lie: hk, then hv, and behind each some elements that no
// operation may touch.
struct StateLayout {
  StateLayout(const MixShape& s, int64_t states)
      : hk(s.G * s.K * s.M),
        hv(s.G * s.M * s.V),
        hv_begin(states * hk / 32 * 32 + 64),
        total(hv_begin + states * hv + 32) {}
  int64_t hk, hv;  // elements of a state
  int64_t hv_begin, total;
};

enum class Gates { kUsual, kExtreme };

// A recurrence on a backend beside the equation, from the same memories and over the same steps.
class MixCase {
 public:
  MixCase(Backend& backend, const MixShape& shape, FeatureMap map, DType dtype, int64_t tokens,
          int64_t states, Gates gates = Gates::kUsual, DType state_type = DType::kF32)
      : backend_(backend),
        s_(shape),
        layout_(shape, states),
        width_(s_.H * s_.K + s_.G * (s_.K + s_.V + s_.M)),
        states_(states),
        gates_(gates),
        state_type_(state_type),
        random_(static_cast<uint32_t>(s_.K * 7 + s_.V * 3 + s_.M)),
        feature_(backend, dtype, {s_.K, s_.K},
                 random_.normal(s_.K * s_.K, 1.5 / std::sqrt(static_cast<double>(s_.K)))),
        equation_{s_, map, feature_.host, 8, state_type},
        qkvf_(backend, tokens, width_),
        out_(backend, tokens, s_.H * s_.V),
        memory_(backend.allocate(layout_.total * dtype_bytes(state_type))) {
    backend.reserve({.tokens = tokens, .segments = states, .logit_rows = 1}, s_, s_.H * s_.V, 64);
    const std::vector<float> initial = random_.normal(layout_.total, 0.5);
    std::vector<std::byte> stored(memory_.bytes());
    narrow(initial, memory(stored.data()));
    backend.upload(stored.data(), stored.size(), memory_.data());
    expected_ = widen(memory(stored.data()));
  }

  // Runs segments of the given lengths, of states in shuffled order, and compares what comes out
  // and every memory, the latter with a tolerance of their own if one is given.
  void run(const std::vector<int32_t>& counts, double tolerance, double of_memories = 0) {
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
    run_step(backend_, data.step(), [&] {
      backend_.mix({.shape = s_,
                    .feature_map = equation_.feature_map,
                    .feature_weight =
                        equation_.feature_map == FeatureMap::kT2R ? feature_.device : TensorView(),
                    .normalizer = equation_.normalizer,
                    .qkvf = qkvf_.view(T),
                    .state_type = state_type_,
                    .hk = memory_.data(),
                    .hv = static_cast<std::byte*>(memory_.data()) +
                          layout_.hv_begin * dtype_bytes(state_type_),
                    .out = out_.view(T)});
    });
    EXPECT_LT(worst_row_error(out_.get(T), equation(data, qkvf), s_.H * s_.V), tolerance);
    compare_memories(data, of_memories > 0 ? of_memories : tolerance);
  }

 private:
  TensorView memory(void* data) const { return TensorView(data, state_type_, {1, layout_.total}); }

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
      double* hk = expected_.data() + segment.state * layout_.hk;
      double* hv = expected_.data() + layout_.hv_begin + segment.state * layout_.hv;
      MixEquation equation = equation_;
      // A GPU rounds the memories of a longer segment once, at its end.
      if (segment.count > 1 && backend_.name() == "cuda") equation.state_type = DType::kF32;
      for (int32_t t = segment.first; t < segment.first + segment.count; ++t) {
        const Doubles row(qkvf.begin() + t * width_, qkvf.begin() + (t + 1) * width_);
        const Doubles o = equation.step(row, hk, hv);
        out.insert(out.end(), o.begin(), o.end());
      }
    }
    return out;
  }

  // Each head's memory of the step's states within the tolerance, everything else untouched. The
  // equation goes on from the device's memories, so that errors do not add up over steps.
  void compare_memories(const StepData& data, double tolerance) {
    std::vector<std::byte> stored(memory_.bytes());
    backend_.download(memory_.data(), stored.size(), stored.data());
    const Doubles found = widen(memory(stored.data()));
    std::vector<bool> written(expected_.size(), false);
    for (const Segment& segment : data.segments) {
      const auto compare = [&](const char* name, int64_t first, int64_t count, int64_t row) {
        EXPECT_LT(worst_row_error(std::span(found).subspan(first, count),
                                  std::span(expected_).subspan(first, count), row),
                  tolerance)
            << name << " of " << segment.state;
        std::fill_n(written.begin() + first, count, true);
      };
      compare("hk", segment.state * layout_.hk, layout_.hk, s_.K * s_.M);
      compare("hv", layout_.hv_begin + segment.state * layout_.hv, layout_.hv, s_.M * s_.V);
    }
    for (size_t i = 0; i < found.size(); ++i) {
      if (!written[i]) {
        ASSERT_EQ(found[i], expected_[i]) << "at " << i << ", not of the step";
      }
    }
    expected_ = found;
  }

  Backend& backend_;
  MixShape s_;
  StateLayout layout_;
  int64_t width_, states_;
  Gates gates_;
  DType state_type_;
  Random random_;
  Weights feature_;
  MixEquation equation_;
  DeviceArray qkvf_, out_;
  Buffer memory_;
  Doubles expected_;
};

}  // namespace gsa::test
