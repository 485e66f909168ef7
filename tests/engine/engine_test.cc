#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "tests/support/engine_fixture.h"
#include "tests/support/error_of.h"

namespace gsa {
namespace {

using test::Gate;
using test::make_request;
using test::random_tokens;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

std::shared_ptr<LoadedModel> model() {
  static const std::shared_ptr<LoadedModel> model = test::tiny_model();
  return model;
}

std::vector<int32_t> prompt(int64_t count, uint32_t seed = 1) {
  return random_tokens(count, model()->config.vocab_size, seed);
}

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

class EngineTest : public test::BothWays {
 protected:
  static EngineOptions options(int64_t states = 4) {
    return {.device = "cpu",
            .threads = 2,
            .states = states,
            .step_tokens = 64,
            .run_ahead = run_ahead()};
  }
};
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

TEST_P(EngineTest, CancelsARequestThatWaitsOneInItsPromptAndOneThatDecodes) {
  Engine engine(model(), options(2));
  Gate begun, gate;
  std::atomic<int> deltas = 0;
  std::promise<Result> decoding, prefilling, waiting;
  const auto to = [](std::promise<Result>& p) {
    return [&p](Result&& r) { p.set_value(std::move(r)); };
  };
  // The gates hold the engine until all three stand where they should.
  const auto first =
      engine.submit(make_request(prompt(4), 1000000), to(decoding), [&](const Delta&) {
        if (++deltas == 1) begun.wait();
        if (deltas == 3) gate.wait();
      });
  const auto second = engine.submit(make_request(prompt(10000), 5), to(prefilling));
  const auto third = engine.submit(make_request(prompt(4), 5), to(waiting));
  begun.open();
  gate.wait_for_visitor();
  EXPECT_EQ(engine.stats().running, 2);
  EXPECT_EQ(engine.stats().waiting, 1);
  for (const auto& id : {first, second, third}) engine.cancel(*id);
  engine.cancel(987654);  // unknown
  gate.open();
  const Result stopped = decoding.get_future().get();
  EXPECT_EQ(stopped.completions.at(0).finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(stopped.completions[0].tokens.size(), 3u);
  EXPECT_EQ(static_cast<int>(stopped.completions[0].tokens.size()), deltas);
  for (std::promise<Result>* promise : {&prefilling, &waiting}) {
    const Result none = promise->get_future().get();
    EXPECT_EQ(none.completions.at(0).finish_reason, FinishReason::kCancelled);
    EXPECT_TRUE(none.completions[0].tokens.empty());
  }
  engine.drain();
  EXPECT_EQ(engine.stats().running + engine.stats().waiting, 0);
  EXPECT_EQ(engine.submit(make_request(prompt(4), 5)).get().completions[0].tokens.size(), 5u);
}

TEST_P(EngineTest, EndsLateRequestsWhetherTheyRunOrWait) {
  Engine engine(model(), options(1));
  Request running = make_request(prompt(4), 1000000);
  running.deadline = std::chrono::steady_clock::now() + 300ms;
  Request waiting = make_request(prompt(4), 5);
  waiting.deadline = std::chrono::steady_clock::now() + 100ms;
  Request patient = make_request(prompt(4), 5);
  auto first = engine.submit(running), second = engine.submit(waiting);
  auto third = engine.submit(patient);
  const Result late = first.get();
  EXPECT_EQ(late.completions.at(0).finish_reason, FinishReason::kDeadline);
  EXPECT_EQ(second.get().completions.at(0).finish_reason, FinishReason::kDeadline);
  EXPECT_EQ(third.get().completions.at(0).finish_reason, FinishReason::kLength);
  EXPECT_FALSE(late.completions[0].tokens.empty());
}

TEST_P(EngineTest, SaysAtOnceThatTheQueueIsFull) {
  EngineOptions small = options(1);
  small.queue_limit = 2;
  Engine engine(model(), small);
  Gate gate;
  const auto nothing = [](Result&&) {};
  engine.submit(make_request(prompt(4), 2), nothing, [&](const Delta&) { gate.wait(); });
  gate.wait_for_visitor();
  EXPECT_TRUE(engine.submit(make_request(prompt(4), 2), nothing));
  EXPECT_TRUE(engine.submit(make_request(prompt(4), 2), nothing));
  EXPECT_FALSE(engine.submit(make_request(prompt(4), 2), nothing));
  EXPECT_THAT(test::error_of([&] { engine.submit(make_request(prompt(4), 2)); }),
              HasSubstr("queue of 2 requests is full"));
  gate.open();
  engine.drain();
  EXPECT_EQ(engine.submit(make_request(prompt(4), 2)).get().completions[0].tokens.size(), 2u);
}

TEST_P(EngineTest, FinishesWhatItHasTakenAndTakesNothingMoreOnceItStopsAccepting) {
  Engine engine(model(), options(2));
  Gate gate;
  std::vector<std::future<Result>> futures;
  std::promise<Result> held;
  engine.submit(
      make_request(prompt(4), 6), [&](Result&& r) { held.set_value(std::move(r)); },
      [&](const Delta&) { gate.wait(); });
  for (int i = 0; i < 5; ++i) futures.push_back(engine.submit(make_request(prompt(4), 6)));
  gate.wait_for_visitor();
  EXPECT_TRUE(engine.accepting());
  engine.stop_accepting();
  EXPECT_FALSE(engine.accepting());
  EXPECT_FALSE(engine.submit(make_request(prompt(4), 6), [](Result&&) {}));
  EXPECT_THAT(test::error_of([&] { engine.submit(make_request(prompt(4), 6)); }),
              HasSubstr("takes no more requests"));
  EXPECT_FALSE(engine.drain_for(10ms)) << "the gate is shut";
  gate.open();
  engine.drain();
  EXPECT_TRUE(engine.drain_for(0ms));
  for (std::future<Result>& future : futures) {
    ASSERT_EQ(future.wait_for(0ms), std::future_status::ready);
    EXPECT_EQ(future.get().completions[0].finish_reason, FinishReason::kLength);
  }
  EXPECT_EQ(held.get_future().get().completions[0].tokens.size(), 6u);
}

TEST_P(EngineTest, DeliversEveryResultWhenItIsDestroyed) {
  std::vector<std::future<Result>> futures;
  {
    Engine engine(model(), options(2));
    for (int i = 0; i < 6; ++i) futures.push_back(engine.submit(make_request(prompt(4), 1000000)));
  }
  for (std::future<Result>& future : futures) {
    EXPECT_EQ(future.get().completions.at(0).finish_reason, FinishReason::kCancelled);
  }
}

TEST_P(EngineTest, RunsRequestsOfHigherPriorityFirst) {
  Engine engine(model(), options(1));
  Gate gate;
  engine.submit(
      make_request(prompt(4), 1), [](Result&&) {}, [&](const Delta&) { gate.wait(); });
  gate.wait_for_visitor();
  std::vector<int> order;
  for (int i = 0; i < 6; ++i) {
    Request request = make_request(prompt(4), 2);
    request.priority = i % 3;
    engine.submit(request, [&order, i](Result&&) { order.push_back(i); });
  }
  gate.open();
  engine.drain();
  EXPECT_THAT(order, ElementsAre(2, 5, 1, 4, 0, 3));
}

TEST_P(EngineTest, DecodesRunningStreamsOnceForEachChunkOfALongPrompt) {
  Engine engine(model(), options(2));
  Gate begun;
  std::atomic<int> tokens = 0;
  int before = 0, after = 0;
  const auto stream = engine.submit(
      make_request(prompt(4), 1000000), [](Result&&) {},
      [&](const Delta&) {
        if (++tokens == 1) begun.wait();
      });
  begun.wait_for_visitor();
  // 64 tokens a step, one of which is the stream's: 100 steps.
  std::promise<void> done;
  engine.submit(
      make_request(prompt(6300), 1), [&](Result&&) { done.set_value(); },
      [&](const Delta&) { after = tokens; });
  before = tokens;
  begun.open();
  done.get_future().get();
  engine.cancel(*stream);
  engine.drain();
  EXPECT_EQ(after - before, 100);
}

TEST_P(EngineTest, EndsTheRequestsOfAFailedStepWithItsMessageAndServesTheNext) {
  const auto damaged = test::tiny_model();
  constexpr int32_t kBad = 700;
  const int64_t D = damaged->config.hidden_size;
  damaged->weights.embeddings.f32()[kBad * D] = std::numeric_limits<float>::quiet_NaN();
  Engine engine(damaged, options(2));
  std::vector<int32_t> good = prompt(20);
  std::replace(good.begin(), good.end(), kBad, 1);
  Request fine = make_request(good, 5);
  fine.sampling.logit_bias = {{.token = kBad, .bias = -1e9f}};
  const std::vector<int32_t> expected = engine.submit(fine).get().completions[0].tokens;
  Request bad = make_request({1, kBad}, 5);
  bad.n = 2;
  const Result failed = engine.submit(bad).get();
  EXPECT_THAT(failed.error, HasSubstr("NaN"));
  ASSERT_EQ(failed.completions.size(), 2u);
  EXPECT_EQ(failed.completions[0].finish_reason, FinishReason::kError);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(engine.submit(fine).get().completions[0].tokens, expected);
  }
}

TEST_P(EngineTest, EndsOnlyTheRequestWhoseSnapshotIsDamaged) {
  Engine engine(model(), options(2));
  Request bad = make_request({}, 5);
  Snapshot snapshot;
  snapshot.tokens = {1};
  snapshot.state.resize(model()->config.state_bytes() / sizeof(float));
  snapshot.logits.assign(model()->config.vocab_size, std::numeric_limits<float>::quiet_NaN());
  bad.from = std::make_shared<Snapshot>(snapshot);
  auto running = engine.submit(make_request(prompt(5), 200));
  EXPECT_THAT(engine.submit(bad).get().error, HasSubstr("NaN"));
  EXPECT_EQ(running.get().completions[0].tokens.size(), 200u);
}

TEST_P(EngineTest, RefusesStatesThatDoNotFitWithTheFigures) {
  const auto start = [](int64_t states, int64_t memory) {
    return test::error_of(
        [&] { Engine(model(), {.device = "cpu", .states = states, .memory_bytes = memory}); });
  };
  EXPECT_THAT(start(int64_t{1} << 40, 0),
              AllOf(HasSubstr("1099511627776 states"), HasSubstr("GiB"), HasSubstr("at most")));
  EXPECT_THAT(start(0, 100), AllOf(HasSubstr("--memory"), HasSubstr("one state")));
}

TEST_P(EngineTest, HoldsAsManyStatesAsTheMemoryTakes) {
  const int64_t state = model()->config.state_bytes();
  EXPECT_EQ(Engine(model(), {.device = "cpu", .memory_bytes = 5 * state + 1}).capacity(), 5);
  EXPECT_EQ(Engine(model(), {.device = "cpu"}).capacity(), 1);
  const Engine half(model(),
                    {.device = "cpu", .memory_bytes = 5 * state + 1, .state_type = DType::kF16});
  EXPECT_EQ(half.capacity(), (5 * state + 1) / half.state_bytes());
  EXPECT_EQ(half.state_bytes(), model()->config.state_bytes(DType::kF16));
  EXPECT_LT(half.state_bytes(), state);
}

}  // namespace
}  // namespace gsa
