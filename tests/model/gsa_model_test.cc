#include "model/gsa_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/devices.h"
#include "tests/support/model_fixture.h"
#include "tests/support/model_shapes.h"

namespace gsa {
namespace {

using test::acquire;
using test::large_shapes;
using test::lively_weights;
using test::random_tokens;
using test::relative_error;
using test::Runner;
using test::Shape;
using test::shape;
using test::shapes;
using test::with;

// By how much two ways of computing may differ on a GPU (tests/model/model_equations_test.cc says
// why float32 that is added up in another order makes 1e-4). Steps of more tokens than
// matrix-vector kernels take round as well: the recurrence multiplies as TF32, 16-bit weights meet
// activations rounded to bf16, which amounts to what a bf16 run of the training library differs by;
// small weights are rounded to bf16 too, which is sqrt(2) times that.
constexpr double kOrderTolerance = 1e-4;
double rounding_tolerance(DType dtype) {
  if (is_quantized(dtype)) return 1.3e-2;
  return dtype == DType::kF32 ? 2e-3 : 0.9e-2;
}

// Whatever else is in a step and wherever prompts are cut: the same bits on the CPU; on the GPU two
// ways of computing that each keep the tolerance.
void expect_same(const std::string& device, DType dtype, std::span<const float> found,
                 std::span<const float> expected) {
  if (device == "cpu") {
    EXPECT_THAT(found, testing::ElementsAreArray(expected));
  } else {
    EXPECT_LT(relative_error(found, expected), 2 * rounding_tolerance(dtype));
  }
}

using GsaModelOn = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, GsaModelOn, testing::ValuesIn(test::kDevices), test::device_name);

using GsaModelOf = test::DeviceTypeTest;
INSTANTIATE_TEST_SUITE_P(Devices, GsaModelOf, testing::ValuesIn(test::matrix_types()),
                         test::device_type_name);

TEST_P(GsaModelOf, DecodesAFewSequencesTogetherAsTheCpuDoesAlone) {
  constexpr int64_t kSteps = 5;
  std::vector<Shape> decoded = large_shapes();
  for (const Shape& shape : test::wide_shapes()) decoded.push_back(shape);
  for (const Shape& shape : decoded) {
    SCOPED_TRACE(shape.name);
    const int64_t N = shape.config.vocab_size;
    const RandomWeights random = lively_weights(shape.config, 21, dtype());
    for (int sequences : {1, 2, 3, 4}) {
      SCOPED_TRACE(sequences);
      Runner run(backend(), shape.config, random.weights, 8);
      Runner alone(shape.config, random.weights, 2, 1);
      const std::vector<StateHandle> states = acquire(run.states, sequences);
      const std::vector<StateHandle> others = acquire(alone.states, sequences);
      const std::vector<int32_t> tokens = random_tokens(kSteps * sequences, N, 22);
      for (int64_t step = 0; step < kSteps; ++step) {
        Batch batch;
        std::vector<float> expected;
        for (int i = 0; i < sequences; ++i) {
          const std::span<const int32_t> token(&tokens[step * sequences + i], 1);
          batch.add(states[i], token, Logits::kLast);
          const std::vector<float> row = alone.logits(others[i], token);
          expected.insert(expected.end(), row.begin(), row.end());
        }
        const std::vector<float> found = run.forward(batch);
        if (device() == "cpu") {
          EXPECT_EQ(found, expected) << "step " << step;
        } else {
          EXPECT_LT(relative_error(found, expected), kOrderTolerance) << "step " << step;
        }
      }
    }
  }
}

TEST_P(GsaModelOf, GivesTheSameLogitsWhereverAPromptIsCut) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape.name);
    const RandomWeights random = lively_weights(shape.config, 6, dtype());
    const std::vector<int32_t> tokens = random_tokens(33, shape.config.vocab_size, 4);
    Runner whole(backend(), shape.config, random.weights, 64);
    const StateHandle state = *whole.states.acquire();
    const std::vector<float> logits = whole.logits(state, tokens);
    for (int64_t step_tokens : {1, 2, 3, 5, 8, 13, 32}) {
      SCOPED_TRACE(testing::Message() << "cut every " << step_tokens);
      Runner cut(backend(), shape.config, random.weights, step_tokens);
      const StateHandle other = *cut.states.acquire();
      expect_same(device(), dtype(), cut.logits(other, tokens), logits);
      expect_same(device(), dtype(), cut.states.export_state(other),
                  whole.states.export_state(state));
    }
  }
}

TEST(GsaModel, GivesTheSameBitsOnAnyNumberOfThreads) {
  const GsaConfig config = with(shape(4, 2, 32, 32, 64), FeatureMap::kT2R, 4, true);
  for (DType type : {DType::kF32, DType::kBF16, DType::kQ8, DType::kQ4}) {
    const RandomWeights random = lively_weights(config, 7, type);
    const std::vector<int32_t> tokens = random_tokens(40, config.vocab_size, 5);
    Runner one(config, random.weights, 1);
    const StateHandle state = *one.states.acquire();
    const std::vector<float> logits = one.logits(state, tokens);
    for (int threads : {2, 3, 7}) {
      Runner many(config, random.weights, threads);
      const StateHandle other = *many.states.acquire();
      EXPECT_EQ(many.logits(other, tokens), logits) << threads << " threads";
      EXPECT_EQ(many.states.export_state(other), one.states.export_state(state));
    }
  }
}

// Wide enough that sums are cut into pieces and that prompts and decoding take different paths.
TEST(GsaModel, GivesTheSameBitsForWideLayersHoweverTheyAreComputed) {
  GsaConfig config = shape(2, 2, 300, 200, 24);
  config.intermediate_size = 1075;
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4}) {
    SCOPED_TRACE(dtype_name(type));
    const RandomWeights random = lively_weights(config, 17, type);
    const std::vector<int32_t> tokens = random_tokens(110, config.vocab_size, 18);
    Runner single(config, random.weights, 2, 1);
    const std::vector<float> logits = single.logits(*single.states.acquire(), tokens);
    for (int64_t step_tokens : {4, 11, 12, 13, 97, 110}) {
      Runner run(config, random.weights, 2, step_tokens);
      EXPECT_EQ(run.logits(*run.states.acquire(), tokens), logits) << step_tokens << " a step";
    }
  }
}

// Feeds `tokens` to one of five sequences, one, two, three, ... at a time between others of
// changing lengths; returns its logits. The others' states go on with it.
std::vector<float> logits_in_a_crowd(Runner& run, std::span<const StateHandle> states,
                                     std::span<const int32_t> tokens) {
  const int64_t N = run.model.config().vocab_size;
  std::vector<float> found;
  for (size_t first = 0, round = 0; first < tokens.size(); ++round) {
    const size_t count = std::min<size_t>(round % 3 + 1, tokens.size() - first);
    Batch batch;
    for (size_t i = 0; i < states.size(); ++i) {
      if (i == 2) {
        batch.add(states[i], tokens.subspan(first, count), Logits::kAll);
      } else {
        const int64_t length = static_cast<int64_t>((i * 7 + round) % 4 + 1);
        batch.add(states[i], random_tokens(length, N, static_cast<uint32_t>(100 + i)),
                  Logits::kNone);
      }
    }
    const std::vector<float> rows = run.forward(batch);
    EXPECT_EQ(rows.size(), count * N);
    found.insert(found.end(), rows.begin(), rows.end());
    first += count;
  }
  return found;
}

TEST_P(GsaModelOf, GivesTheSameLogitsAloneAndBesideOthers) {
  const GsaConfig config = with(shape(6, 2, 16, 16, 20), FeatureMap::kSwish, 4, true);
  const RandomWeights random = lively_weights(config, 8, dtype());
  const std::vector<int32_t> tokens = random_tokens(24, config.vocab_size, 6);
  Runner alone(backend(), config, random.weights);
  const StateHandle state = *alone.states.acquire();
  const std::vector<float> logits = alone.logits(state, tokens);

  Runner crowd(backend(), config, random.weights);
  const std::vector<StateHandle> states = acquire(crowd.states, 5);
  expect_same(device(), dtype(), logits_in_a_crowd(crowd, states, tokens), logits);
  expect_same(device(), dtype(), crowd.states.export_state(states[2]),
              alone.states.export_state(state));
}

TEST_P(GsaModelOf, GivesTheSameBitsWhenRunAgain) {
  const GsaConfig config = with(shape(6, 2, 64, 64, 64), FeatureMap::kT2R, 4, true);
  const RandomWeights random = lively_weights(config, 11, dtype());
  const std::vector<int32_t> tokens = random_tokens(48, config.vocab_size, 8);
  std::vector<HostFloats> before;
  for (int time = 0; time < 3; ++time) {
    Runner run(backend(), config, random.weights);
    const std::vector<StateHandle> states = acquire(run.states, 5);
    std::vector<HostFloats> found = {logits_in_a_crowd(run, states, tokens),
                                     run.logits(states[0], tokens)};
    for (const StateHandle& state : states) found.push_back(run.states.export_state(state));
    if (time > 0) {
      EXPECT_EQ(found, before) << "the " << time + 1 << ". time";
    }
    before = std::move(found);
  }
}

// Of which a GPU repeats steps as a graph of kernels, and as one kernel.
struct Repeated {
  GsaConfig config;
  DType dtype;
};
std::vector<Repeated> repeated() {
  return {{with(shape(4, 2, 16, 16, 16), FeatureMap::kSwish, 4, true), DType::kF32},
          {large_shapes()[2].config, DType::kBF16}};
}

// Decodes three of eight sequences, others each time.
void repeat_on_other_states(const std::string& device, std::unique_ptr<Backend> backend,
                            const Repeated& model) {
  const RandomWeights random = lively_weights(model.config, 12, model.dtype);
  Runner run(std::move(backend), model.config, random.weights);
  const std::vector<StateHandle> states = acquire(run.states, 8);
  const int64_t N = model.config.vocab_size;
  std::vector<std::vector<int32_t>> fed(states.size());
  std::vector<std::vector<float>> found(states.size());
  for (uint32_t step = 0; step < 40; ++step) {
    Batch batch;
    const std::vector<int32_t> tokens = random_tokens(3, N, step);
    std::vector<size_t> chosen;
    for (size_t i = 0; i < 3; ++i) {
      chosen.push_back((step * 5 + i * (step % 2 + 2)) % states.size());
      batch.add(states[chosen[i]], std::span(tokens).subspan(i, 1), Logits::kLast);
      fed[chosen[i]].push_back(tokens[i]);
    }
    const std::vector<float> rows = run.forward(batch);
    ASSERT_EQ(static_cast<int64_t>(rows.size()), 3 * N);
    for (size_t i = 0; i < 3; ++i) {
      found[chosen[i]].insert(found[chosen[i]].end(), rows.begin() + i * N,
                              rows.begin() + (i + 1) * N);
    }
  }
  for (size_t i = 0; i < states.size(); ++i) {
    SCOPED_TRACE(i);
    Runner alone(make_backend(device, 2), model.config, random.weights);
    expect_same(device, model.dtype, found[i], alone.logits(*alone.states.acquire(), fed[i]));
  }
}

TEST_P(GsaModelOn, RepeatsAStepOfTheSameShapeOnOtherStatesAndTokens) {
  // A backend may record a step and replay it: what it works on must be this step's.
  for (const Repeated& model : repeated()) {
    SCOPED_TRACE(dtype_name(model.dtype));
    repeat_on_other_states(device(), backend(), model);
  }
}

TEST_P(GsaModelOn, IsPreparedForEveryStepAndLeavesNoTraceOfIt) {
  for (const Repeated& model : repeated()) {
    SCOPED_TRACE(dtype_name(model.dtype));
    const RandomWeights random = lively_weights(model.config, 11, model.dtype);
    const std::vector<int32_t> tokens = random_tokens(10, model.config.vocab_size, 12);
    Runner prepared(backend(), model.config, random.weights, 10, 10);
    prepared.model.prepare(prepared.states);
    ASSERT_EQ(prepared.states.available(), 10);
    Runner other(backend(), model.config, random.weights, 10, 10);
    for (size_t sequences : {1, 4, 7, 10, 3}) {
      std::vector<float> logits[2];
      for (Runner* run : {&prepared, &other}) {
        const std::vector<StateHandle> states = acquire(run->states, sequences);
        Batch batch;
        for (size_t i = 0; i < sequences; ++i) {
          batch.add(states[i], std::span(tokens).subspan(i, 1), Logits::kLast);
        }
        logits[run == &other] = run->forward(batch);
      }
      EXPECT_EQ(logits[0], logits[1]) << sequences << " sequences";
    }
  }
}

// Steps of one shape, of two models and two pools in turn on one backend.
void alternate(const std::string& device, std::unique_ptr<Backend> backend,
               const Repeated& repeated) {
  const GsaConfig& config = repeated.config;
  const std::vector<RandomWeights> weights = {lively_weights(config, 13, repeated.dtype),
                                              lively_weights(config, 14, repeated.dtype)};
  const std::vector<int32_t> tokens = random_tokens(24, config.vocab_size, 15);
  StatePool pools[] = {StatePool(config, *backend, 3), StatePool(config, *backend, 3)};
  const StepLimits limits{.tokens = 2, .segments = 2, .logit_rows = 2};
  GsaModel models[] = {GsaModel(config, weights[0].weights, *backend, limits),
                       GsaModel(config, weights[1].weights, *backend, limits)};
  std::vector<float> found[2][2];
  std::vector<StateHandle> states[2][2];
  for (int m : {0, 1}) {
    for (int p : {0, 1}) states[m][p].push_back(*pools[p].acquire());
  }
  for (size_t t = 0; t < tokens.size(); ++t) {
    for (int m : {0, 1}) {
      for (int p : {0, 1}) {
        Batch batch;
        batch.add(states[m][p][0], std::span(tokens).subspan(t, 1), Logits::kLast);
        const std::vector<float> row = test::download(*backend, models[m].forward(batch, pools[p]));
        found[m][p].insert(found[m][p].end(), row.begin(), row.end());
      }
    }
  }
  for (int m : {0, 1}) {
    Runner alone(make_backend(device, 2), config, weights[m].weights, 1);
    const std::vector<float> expected = alone.logits(*alone.states.acquire(), tokens);
    for (int p : {0, 1}) expect_same(device, repeated.dtype, found[m][p], expected);
  }
}

TEST_P(GsaModelOn, WorksOnTheStatesThatItIsGiven) {
  for (const Repeated& model : repeated()) {
    SCOPED_TRACE(dtype_name(model.dtype));
    alternate(device(), backend(), model);
  }
}

TEST_P(GsaModelOn, ReturnsTheLogitsThatWereAskedForInOrder) {
  const GsaConfig config = shape(2, 2, 8, 8, 8);
  const RandomWeights random = lively_weights(config, 9);
  const std::vector<int32_t> tokens = random_tokens(5, config.vocab_size, 7);
  Runner run(backend(), config, random.weights);
  const std::vector<StateHandle> states = acquire(run.states, 3);
  const std::vector<float> all = run.logits(states[0], tokens);
  Batch batch;
  batch.add(states[1], tokens, Logits::kLast);
  batch.add(states[2], tokens, Logits::kAll);
  const std::vector<float> rows = run.forward(batch);
  const size_t N = config.vocab_size;
  ASSERT_EQ(rows.size(), 6 * N);
  expect_same(device(), DType::kF32, std::span(rows).first(N), {all.end() - N, all.end()});
  expect_same(device(), DType::kF32, std::span(rows).subspan(N), all);
}

TEST_P(GsaModelOn, RefusesBadBatchesBeforeChangingAnything) {
  const GsaConfig config = shape(2, 2, 8, 8, 8);
  const RandomWeights random = lively_weights(config, 10);
  Runner run(backend(), config, random.weights, 4);
  const StateHandle state = *run.states.acquire();
  const HostFloats before = run.states.export_state(state);
  for (const std::vector<int32_t>& tokens :
       {std::vector<int32_t>{1, 97}, {1, -1}, {1, 2, 3, 4, 5}}) {
    Batch batch;
    batch.add(state, tokens, Logits::kLast);
    EXPECT_THROW(run.model.forward(batch, run.states), Error);
  }
  EXPECT_EQ(run.states.export_state(state), before);
}

}  // namespace
}  // namespace gsa
