#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <thread>

#include "tests/support/engine_fixture.h"
#include "tests/support/error_of.h"

namespace gsa {
namespace {

using test::make_request;
using test::model;
using test::prompt;
using testing::ElementsAre;

// Logits after each token, by the model alone.
std::vector<std::vector<float>> logits_of(const std::vector<int32_t>& tokens) {
  test::Runner run(model()->config, model()->weights);
  const StateHandle state = *run.states.acquire();
  const std::vector<float> all = run.logits(state, tokens);
  std::vector<std::vector<float>> rows;
  const int64_t N = model()->config.vocab_size;
  for (size_t t = 0; t < tokens.size(); ++t) {
    rows.emplace_back(all.begin() + t * N, all.begin() + (t + 1) * N);
  }
  return rows;
}

using EngineTest = test::EngineBothWays;
INSTANTIATE_TEST_SUITE_P(Steps, EngineTest, testing::Bool(), test::way_name);

double logprob(const std::vector<float>& logits, int32_t token) {
  double sum = 0;
  for (float l : logits) sum += std::exp(l);
  return logits[token] - std::log(sum);
}

TEST_P(EngineTest, ContinuesAPromptGreedilyAsTheModelDoes) {
  Engine engine(model(), options());
  Request request = make_request(prompt(10), 12);
  request.sampling.temperature = 0;
  const Result result = engine.submit(request).get();
  std::vector<int32_t> tokens = request.prompt;
  for (int i = 0; i < 12; ++i) {
    const std::vector<float> last = logits_of(tokens).back();
    tokens.push_back(
        static_cast<int32_t>(std::max_element(last.begin(), last.end()) - last.begin()));
  }
  const Completion& completion = result.completions.at(0);
  EXPECT_EQ(completion.tokens, std::vector<int32_t>(tokens.begin() + 10, tokens.end()));
  EXPECT_EQ(completion.finish_reason, FinishReason::kLength);
  EXPECT_EQ(completion.text, model()->tokenizer->decode(tokens).substr(
                                 model()->tokenizer->decode(request.prompt).size()));
  EXPECT_EQ(result.prompt_tokens, 10);
  EXPECT_EQ(result.error, "");
}

TEST_P(EngineTest, GivesTheModelsLogProbabilitiesOfPromptAndOutput) {
  Engine engine(model(), options());
  Request request = make_request(prompt(150), 5, 3);  // three chunks
  request.sampling.logprobs = 3;
  request.prompt_logprobs = true;
  const Result result = engine.submit(request).get();
  std::vector<int32_t> tokens = request.prompt;
  const Completion& completion = result.completions.at(0);
  tokens.insert(tokens.end(), completion.tokens.begin(), completion.tokens.end());
  const auto rows = logits_of(tokens);
  std::vector<SampleResult> reported = result.prompt_logprobs;
  ASSERT_EQ(reported.size(), 149u);
  ASSERT_EQ(completion.logprobs.size(), 5u);
  reported.insert(reported.end(), completion.logprobs.begin(), completion.logprobs.end());
  for (size_t i = 0; i < reported.size(); ++i) {
    const SampleResult& r = reported[i];
    ASSERT_EQ(r.token, tokens[i + 1]);
    ASSERT_NEAR(r.logprob, logprob(rows[i], r.token), 1e-4) << i;
    ASSERT_EQ(r.top.size(), 3u);
    ASSERT_EQ(r.top[0].token, std::max_element(rows[i].begin(), rows[i].end()) - rows[i].begin());
    ASSERT_GE(r.top[0].logprob, r.top[1].logprob);
    ASSERT_NEAR(r.top[2].logprob, logprob(rows[i], r.top[2].token), 1e-4);
  }
}

TEST_P(EngineTest, ReportsNoLogProbabilitiesUnlessAsked) {
  Engine engine(model(), options());
  const Result result = engine.submit(make_request(prompt(5), 3)).get();
  EXPECT_TRUE(result.completions.at(0).logprobs.empty());
  EXPECT_TRUE(result.prompt_logprobs.empty());
}

TEST_P(EngineTest, DrawsEachOfSeveralCompletionsAsARequestOfItsOwnWouldWithTheNextSeed) {
  Engine engine(model(), options(3));
  Request request = make_request(prompt(90), 20, 40);
  request.n = 3;
  const Result together = engine.submit(request).get();
  ASSERT_EQ(together.completions.size(), 3u);
  request.n = 1;
  for (int32_t i = 0; i < 3; ++i) {
    request.sampling.seed = 40 + i;
    const Result alone = engine.submit(request).get();
    EXPECT_EQ(together.completions[i].tokens, alone.completions[0].tokens);
    EXPECT_EQ(together.completions[i].text, alone.completions[0].text);
  }
  EXPECT_NE(together.completions[0].tokens, together.completions[1].tokens);
}

TEST_P(EngineTest, StopsAtEosAndAtStopTokensButNotBeforeTheMinimum) {
  Engine engine(model(), options());
  Request request = make_request(prompt(5), 30, 2);
  const std::vector<int32_t> free = engine.submit(request).get().completions[0].tokens;
  const auto first = [&](int32_t token) { return std::find(free.begin(), free.end(), token); };

  request.stop_token_ids = {free[7]};
  Completion stopped = engine.submit(request).get().completions[0];
  EXPECT_EQ(stopped.tokens, std::vector<int32_t>(free.begin(), first(free[7]) + 1));
  EXPECT_EQ(stopped.finish_reason, FinishReason::kStop);

  request.stop_token_ids = {free[0]};
  request.min_tokens = 10;
  Completion late = engine.submit(request).get().completions[0];
  EXPECT_GE(late.tokens.size(), 10u);
  EXPECT_EQ(std::find(late.tokens.begin(), late.tokens.begin() + 10, free[0]) - late.tokens.begin(),
            10);

  request.stop_token_ids.clear();
  request.min_tokens = 0;
  request.sampling.logit_bias = {{.token = 2, .bias = 1000}};  // EOS
  request.ignore_eos = false;
  EXPECT_THAT(engine.submit(request).get().completions[0].tokens, ElementsAre(2));
  request.min_tokens = 4;
  const std::vector<int32_t> held = engine.submit(request).get().completions[0].tokens;
  EXPECT_EQ(held.size(), 5u);
  EXPECT_EQ(held.back(), 2);
  request.min_tokens = 0;
  request.ignore_eos = true;
  EXPECT_EQ(engine.submit(request).get().completions[0].tokens, std::vector<int32_t>(30, 2));
}

TEST_P(EngineTest, GeneratesNothingForMaxTokensZero) {
  Engine engine(model(), options());
  Request request = make_request(prompt(5), 0);
  request.prompt_logprobs = true;
  const Result result = engine.submit(request).get();
  EXPECT_TRUE(result.completions.at(0).tokens.empty());
  EXPECT_EQ(result.completions[0].finish_reason, FinishReason::kLength);
  EXPECT_EQ(result.prompt_logprobs.size(), 4u);
}

TEST_P(EngineTest, StreamsTheTextInPiecesThatAddUpAndNeverShowsAStopStringCutByTokens) {
  Engine engine(model(), options());
  Request request = make_request(prompt(4), 40, 6);
  const Completion whole = engine.submit(request).get().completions[0];
  const size_t at = whole.text.size() / 2;
  request.stop = {whole.text.substr(at, 9)};
  for (int32_t token : whole.tokens) {
    ASSERT_EQ(model()->tokenizer->bytes(token).find(request.stop[0]), std::string::npos);
  }
  const size_t end = whole.text.find(request.stop[0]);
  std::string streamed;
  std::vector<int32_t> tokens;
  std::promise<Result> promise;
  engine.submit(
      request, [&](Result&& result) { promise.set_value(std::move(result)); },
      [&](const Delta& delta) {
        streamed += delta.text;
        tokens.push_back(delta.token);
        EXPECT_EQ(streamed.find(request.stop[0]), std::string::npos);
      });
  const Completion cut = promise.get_future().get().completions[0];
  EXPECT_EQ(cut.finish_reason, FinishReason::kStop);
  EXPECT_EQ(cut.text, whole.text.substr(0, end));
  EXPECT_EQ(streamed, cut.text);
  EXPECT_EQ(tokens, cut.tokens);
  EXPECT_LT(cut.tokens.size(), whole.tokens.size());
}

TEST_P(EngineTest, ShowsTextThatOnlyBeganLikeAStopStringAtTheEnd) {
  Engine engine(model(), options());
  Request request = make_request(prompt(4), 25, 6);
  const std::string whole = engine.submit(request).get().completions[0].text;
  request.stop = {whole.substr(whole.size() - 3) + "never"};
  EXPECT_EQ(engine.submit(request).get().completions[0].text, whole);
}

TEST_P(EngineTest, CallsBackOnItsOwnThreadOnceForEachTokenAndOnceWithTheResult) {
  Engine engine(model(), options());
  std::atomic<int> deltas = 0, results = 0;
  std::thread::id delta_thread, result_thread;
  Request request = make_request(prompt(5), 8);
  request.n = 2;
  engine.submit(
      request,
      [&](Result&&) {
        ++results;
        result_thread = std::this_thread::get_id();
      },
      [&](const Delta&) {
        ++deltas;
        delta_thread = std::this_thread::get_id();
      });
  engine.drain();
  EXPECT_EQ(deltas, 16);
  EXPECT_EQ(results, 1);
  EXPECT_EQ(delta_thread, result_thread);
  EXPECT_NE(delta_thread, std::this_thread::get_id());
}

TEST_P(EngineTest, TakesNewRequestsFromACallback) {
  Engine engine(model(), options());
  std::promise<Result> promise;
  engine.submit(make_request(prompt(5), 2), [&](Result&&) {
    engine.submit(make_request(prompt(6), 3),
                  [&](Result&& second) { promise.set_value(std::move(second)); });
  });
  EXPECT_EQ(promise.get_future().get().completions[0].tokens.size(), 3u);
}

}  // namespace
}  // namespace gsa
