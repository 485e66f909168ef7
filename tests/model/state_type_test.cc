// Models whose states have memories of 16 bits.

#include <gtest/gtest.h>

#include "tests/support/devices.h"
#include "tests/support/model_fixture.h"
#include "tests/support/reference_model.h"

namespace gsa {
namespace {

using test::random_tokens;
using test::ReferenceModel;
using test::relative_error;
using test::Runner;

// Devices and types of the memories.
class StateType : public test::DeviceTypeTest {
 protected:
  Runner runner(const GsaConfig& config, const RandomWeights& random, int64_t step_tokens) const {
    return Runner(backend(), config, random.weights, step_tokens, 8, dtype());
  }

  // What memories of 16 bits may cost. With u the most that one rounding is off by, relative to an
  // element, it is off by 0.4 u as a rule; a memory that keeps 0.9 of itself a token holds 2.3
  // times that of independent roundings, about u; two layers may make three of it (0.8 found in
  // f16, 1.7 in bf16).
  double tolerance() const { return 3 * (dtype() == DType::kF16 ? 0x1p-11 : 0x1p-9); }
};

INSTANTIATE_TEST_SUITE_P(Devices, StateType, testing::ValuesIn(test::types_of_16_bits()),
                         test::device_type_name);

GsaConfig with_conv(GsaConfig config, int64_t conv_size) {
  config.conv_size = conv_size;
  return config;
}

const std::vector<GsaConfig> kConfigs = {test::shape(4, 4, 32, 32, 64),
                                         with_conv(test::shape(10, 2, 8, 8, 40), 3),
                                         with_conv(test::shape(3, 3, 7, 5, 9), 4)};

TEST_P(StateType, AgreesWithTheEquationsThatRoundAsItDoes) {
  for (const GsaConfig& config : kConfigs) {
    SCOPED_TRACE(config.hidden_size);
    const RandomWeights random = test::lively_weights(config, 5);
    const std::vector<int32_t> tokens = random_tokens(100, config.vocab_size, 3);
    const test::Doubles exact = ReferenceModel(config, random.weights).logits(tokens);
    const test::Doubles rounded = ReferenceModel(config, random.weights, dtype()).logits(tokens);
    EXPECT_LT(relative_error(rounded, exact), tolerance());
    for (int64_t step_tokens : {1, 100}) {
      SCOPED_TRACE(testing::Message() << "steps of " << step_tokens);
      Runner run = runner(config, random, step_tokens);
      const std::vector<float> found = run.logits(*run.states.acquire(), tokens);
      if (device() == "cuda" && step_tokens > 1) {
        // Rounded once, after all of it; products are TF32.
        EXPECT_LT(relative_error(found, exact), 2e-3);
      } else {
        // Few elements are rounded to the other side.
        EXPECT_LT(relative_error(found, rounded), 0.2 * tolerance());
      }
    }
  }
}

// A shape and weights of which a GPU would decode in one kernel if the states were float32.
TEST_P(StateType, IsThatOfStepsWhichAreRepeated) {
  GsaConfig c = test::shape(4, 2, 64, 64, 64);
  c.intermediate_size = 256;
  const RandomWeights random = test::lively_weights(c, 9, DType::kBF16);
  const std::vector<int32_t> tokens = random_tokens(30, c.vocab_size, 10);
  Runner run = runner(c, random, 1);
  const std::vector<float> found = run.logits(*run.states.acquire(), tokens);
  const test::Doubles rounded = ReferenceModel(c, random.weights, dtype()).logits(tokens);
  EXPECT_LT(relative_error(found, rounded), 0.2 * tolerance());
}

TEST_P(StateType, GivesTheSameLogitsWhereverAPromptIsCut) {
  for (const GsaConfig& config : kConfigs) {
    SCOPED_TRACE(config.hidden_size);
    const RandomWeights random = test::lively_weights(config, 6);
    const std::vector<int32_t> tokens = random_tokens(33, config.vocab_size, 4);
    Runner whole = runner(config, random, 64);
    const StateHandle state = *whole.states.acquire();
    const std::vector<float> logits = whole.logits(state, tokens);
    for (int64_t step_tokens : {1, 3, 8, 32}) {
      SCOPED_TRACE(testing::Message() << "cut every " << step_tokens);
      Runner cut = runner(config, random, step_tokens);
      const StateHandle other = *cut.states.acquire();
      const std::vector<float> found = cut.logits(other, tokens);
      if (device() == "cpu") {
        EXPECT_EQ(found, logits);
        EXPECT_EQ(cut.states.export_state(other), whole.states.export_state(state));
      } else {
        EXPECT_LT(relative_error(found, logits), tolerance() + 2e-3);
      }
    }
  }
}

TEST_P(StateType, GivesTheSameBitsBesideOthersAndWhenRunAgain) {
  const GsaConfig& config = kConfigs[1];
  const RandomWeights random = test::lively_weights(config, 7);
  const std::vector<int32_t> tokens = random_tokens(20, config.vocab_size, 8);
  // Three sequences decode side by side, each the next one's tokens a step later.
  const auto decode = [&](size_t sequences) {
    Runner run = runner(config, random, 8);
    const std::vector<StateHandle> states = test::acquire(run.states, sequences);
    std::vector<float> found;  // of the first
    for (size_t t = 0; t + sequences < tokens.size(); ++t) {
      Batch batch;
      for (size_t i = 0; i < sequences; ++i) {
        batch.add(states[i], std::span(tokens).subspan(t + i, 1), Logits::kLast);
      }
      const std::vector<float> rows = run.forward(batch);
      found.insert(found.end(), rows.begin(), rows.begin() + config.vocab_size);
    }
    return found;
  };
  const std::vector<float> together = decode(3);
  EXPECT_EQ(decode(3), together);
  std::vector<float> alone = decode(1);
  alone.resize(together.size());
  if (device() == "cpu") {
    EXPECT_EQ(alone, together);
  } else {
    EXPECT_LT(relative_error(alone, together), tolerance());
  }
}

}  // namespace
}  // namespace gsa
