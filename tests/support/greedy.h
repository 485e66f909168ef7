#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "engine/loaded_model.h"
#include "engine/request.h"
#include "tests/support/model_fixture.h"
#include "tests/support/tree.h"

namespace gsa::test {

// The model that ships.
inline std::shared_ptr<const LoadedModel> shipped_model() {
  static const auto model = load_model(tree() / "models/tale-10m.safetensors");
  return model;
}

// Tokens of the highest logit, and how far the second best lies below.
struct Greedy {
  std::vector<int32_t> tokens;
  std::vector<double> gaps;
};

// What follows the prompt, straight from the model on the CPU, one token a step.
inline Greedy greedy_on_cpu(const LoadedModel& model, std::span<const int32_t> prompt,
                            int64_t count) {
  Runner run(model.config, model.weights, 2, 1, 1);
  const StateHandle state = *run.states.acquire();
  const size_t N = model.config.vocab_size;
  std::vector<float> logits = run.logits(state, prompt);
  Greedy greedy;
  while (static_cast<int64_t>(greedy.tokens.size()) < count) {
    const auto begin = logits.end() - static_cast<int64_t>(N);
    const auto best = std::max_element(begin, logits.end());
    greedy.tokens.push_back(static_cast<int32_t>(best - begin));
    const float top = *best;
    *best = -HUGE_VALF;
    greedy.gaps.push_back(top - *std::max_element(begin, logits.end()));
    logits = run.logits(state, {&greedy.tokens.back(), 1});
  }
  return greedy;
}

// A greedy request of `count` tokens that reports the two likeliest of each.
inline Request greedy_request(std::vector<int32_t> prompt, int64_t count) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.logprobs = 2;
  request.max_tokens = count;
  request.ignore_eos = true;
  return request;
}

inline Greedy greedy_of(const Completion& completion) {
  Greedy greedy{completion.tokens, {}};
  for (const SampleResult& result : completion.logprobs) {
    greedy.gaps.push_back(result.top[0].logprob - result.top[1].logprob);
  }
  return greedy;
}

// The tokens are `expected`, as many as there are, or first differ where its two best logits differ
// by less than `bound`: there both are right, and what follows is another text.
inline void expect_greedy(std::span<const int32_t> tokens, const Greedy& expected, double bound) {
  ASSERT_LE(tokens.size(), expected.tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] == expected.tokens[i]) continue;
    EXPECT_LT(expected.gaps[i], bound)
        << "token " << i << " is " << tokens[i] << ", not " << expected.tokens[i];
    return;
  }
}

}  // namespace gsa::test
