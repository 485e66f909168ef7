#include "model/gsa_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/model_fixture.h"
#include "tests/support/reference_model.h"

namespace gsa {
namespace {

using test::lively_weights;
using test::random_tokens;
using test::relative_error;
using test::Runner;

// The bound the project sets itself. Float32 sums of at most 1,024 products err by a few 1e-7
// each; two layers of exponentials amplify that by about ten.
constexpr double kTolerance = 2e-5;

struct Shape {
  const char* name;
  GsaConfig config;
};

GsaConfig shape(int64_t H, int64_t G, int64_t K, int64_t V, int64_t M) {
  GsaConfig c;
  c.hidden_size = H * K;
  c.num_layers = 2;
  c.vocab_size = 97;
  c.intermediate_size = 75;
  c.num_heads = H;
  c.num_kv_heads = G;
  c.key_dim = K;
  c.value_dim = V;
  c.num_slots = M;
  c.bos_token_id = 1;
  c.eos_token_ids = {2};
  return c;
}

GsaConfig with(GsaConfig config, FeatureMap map, int64_t conv, bool affine, bool tied = false) {
  config.feature_map = map;
  config.conv_size = conv;
  config.elementwise_affine = affine;
  config.tie_word_embeddings = tied;
  return config;
}

std::vector<Shape> shapes() {
  constexpr auto kSwish = FeatureMap::kSwish, kRelu = FeatureMap::kRelu, kT2R = FeatureMap::kT2R;
  return {
      {"one head of 512 with 128 slots", shape(1, 1, 512, 512, 128)},
      {"one memory for all query heads", shape(6, 1, 16, 16, 24)},
      {"learned map with grouped heads", with(shape(6, 3, 12, 12, 20), kT2R, 0, true)},
      {"convolution with grouped heads", with(shape(4, 2, 16, 16, 16), kSwish, 4, true)},
      {"convolution of width one", with(shape(2, 2, 16, 16, 16), kSwish, 1, true)},
      {"convolution of width two", with(shape(2, 1, 16, 16, 16), kRelu, 2, true)},
      {"no output norm weight", with(shape(2, 2, 16, 16, 16), kSwish, 0, false)},
      {"everything at once", with(shape(10, 2, 8, 8, 40), kT2R, 3, false, true)},
      {"odd sizes", shape(3, 3, 7, 5, 9)},
      {"more slots than a block", shape(2, 1, 8, 24, 200)},
      {"one slot", shape(2, 2, 8, 8, 1)},
  };
}

TEST(GsaModel, AgreesWithTheEquationsForShapesThatNoFixtureCovers) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape.name);
    const RandomWeights random = lively_weights(shape.config, 5);
    const std::vector<int32_t> tokens = random_tokens(20, shape.config.vocab_size, 3);
    test::ReferenceModel reference(shape.config, random.weights);
    test::Doubles expected;
    for (int32_t token : tokens) {
      const test::Doubles row = reference.step(token);
      expected.insert(expected.end(), row.begin(), row.end());
    }
    Runner run(shape.config, random.weights);
    const StateHandle state = *run.states.acquire();
    EXPECT_LT(relative_error(run.logits(state, tokens), expected), kTolerance);

    const std::vector<float> floats = run.states.export_state(state);
    const float* at = floats.data();
    for (int64_t i = 0; i < shape.config.num_layers; ++i) {
      const test::Doubles& hk = reference.memory(i).hk;
      EXPECT_LT(relative_error(std::span(at, hk.size()), hk), kTolerance) << "hk of layer " << i;
      at += hk.size();
    }
    for (int64_t i = 0; i < shape.config.num_layers; ++i) {
      const test::Doubles& hv = reference.memory(i).hv;
      EXPECT_LT(relative_error(std::span(at, hv.size()), hv), kTolerance) << "hv of layer " << i;
      at += hv.size();
    }
  }
}

TEST(GsaModel, GivesTheSameBitsWhereverAPromptIsCut) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape.name);
    const RandomWeights random = lively_weights(shape.config, 6);
    const std::vector<int32_t> tokens = random_tokens(33, shape.config.vocab_size, 4);
    Runner whole(shape.config, random.weights, 2, 64);
    const StateHandle state = *whole.states.acquire();
    const std::vector<float> logits = whole.logits(state, tokens);
    for (int64_t step_tokens : {1, 2, 3, 5, 8, 13, 32}) {
      Runner cut(shape.config, random.weights, 2, step_tokens);
      const StateHandle other = *cut.states.acquire();
      EXPECT_EQ(cut.logits(other, tokens), logits) << "cut every " << step_tokens;
      EXPECT_EQ(cut.states.export_state(other), whole.states.export_state(state));
    }
  }
}

TEST(GsaModel, GivesTheSameBitsOnAnyNumberOfThreads) {
  const GsaConfig config = with(shape(4, 2, 32, 32, 64), FeatureMap::kT2R, 4, true);
  const RandomWeights random = lively_weights(config, 7);
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

TEST(GsaModel, GivesTheSameBitsAloneAndBesideOthers) {
  const GsaConfig config = with(shape(6, 2, 16, 16, 20), FeatureMap::kSwish, 4, true);
  const RandomWeights random = lively_weights(config, 8);
  const std::vector<int32_t> tokens = random_tokens(24, config.vocab_size, 6);
  Runner alone(config, random.weights);
  const StateHandle state = *alone.states.acquire();
  const std::vector<float> logits = alone.logits(state, tokens);

  // The same tokens one, two, ... at a time between other sequences of changing lengths.
  Runner crowd(config, random.weights);
  std::vector<StateHandle> states;
  for (int i = 0; i < 5; ++i) states.push_back(*crowd.states.acquire());
  std::vector<float> found;
  const int64_t N = config.vocab_size;
  for (size_t first = 0, round = 0; first < tokens.size(); ++round) {
    const size_t count = std::min<size_t>(round % 3 + 1, tokens.size() - first);
    Batch batch;
    for (size_t i = 0; i < states.size(); ++i) {
      if (i == 2) {
        batch.add(states[i], std::span(tokens).subspan(first, count), Logits::kAll);
      } else {
        batch.add(states[i], random_tokens((i * 7 + round) % 4 + 1, N, 100 + i), Logits::kNone);
      }
    }
    const TensorView rows = crowd.model.forward(batch, crowd.states);
    ASSERT_EQ(rows.shape[0], static_cast<int64_t>(count));
    found.insert(found.end(), rows.f32(), rows.f32() + rows.elements());
    first += count;
  }
  EXPECT_EQ(found, logits);
  EXPECT_EQ(crowd.states.export_state(states[2]), alone.states.export_state(state));
}

TEST(GsaModel, ReturnsTheLogitsThatWereAskedForInOrder) {
  const GsaConfig config = shape(2, 2, 8, 8, 8);
  const RandomWeights random = lively_weights(config, 9);
  const std::vector<int32_t> tokens = random_tokens(5, config.vocab_size, 7);
  Runner run(config, random.weights);
  const StateHandle a = *run.states.acquire(), b = *run.states.acquire(), c = *run.states.acquire();
  const std::vector<float> all = run.logits(a, tokens);
  Batch batch;
  batch.add(b, tokens, Logits::kLast);
  batch.add(c, tokens, Logits::kAll);
  const TensorView rows = run.model.forward(batch, run.states);
  ASSERT_EQ(rows.shape[0], 6);
  const int64_t N = config.vocab_size;
  EXPECT_THAT(std::span(rows.f32(), N), testing::ElementsAreArray(all.end() - N, all.end()));
  EXPECT_THAT(std::span(rows.f32() + N, 5 * N), testing::ElementsAreArray(all));
}

TEST(GsaModel, RefusesBadBatchesBeforeChangingAnything) {
  const GsaConfig config = shape(2, 2, 8, 8, 8);
  const RandomWeights random = lively_weights(config, 10);
  Runner run(config, random.weights, 1, 4);
  const StateHandle state = *run.states.acquire();
  const std::vector<float> before = run.states.export_state(state);
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
