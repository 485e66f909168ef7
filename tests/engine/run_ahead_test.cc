// An engine that queues a step before it has read the last one's tokens gives what one gives that
// does not, bit for bit.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "tests/support/engine_fixture.h"

namespace gsa {
namespace {

using test::Gate;
using test::make_request;
using test::model;
using test::prompt;
using test::random_tokens;

EngineOptions options(bool run_ahead, int64_t states = 4, int64_t cached_states = 0) {
  return {.device = "cpu",
          .threads = 1,
          .states = states,
          .step_tokens = 48,
          .cache_bytes = cached_states * model()->config.state_bytes(),
          .run_ahead = run_ahead};
}

// All that a caller sees of a request.
struct Seen {
  Result result;
  std::vector<int32_t> tokens;  // streamed
  std::string text;
};

// A request, and after how many of its tokens it is cancelled; 0: never.
struct Planned {
  Request request;
  int64_t cancel_after = 0;
};

// Everything that decides how a sequence ends and what is drawn, each in some of the requests.
Planned random_plan(std::mt19937& random) {
  const auto chance = [&](int one_in) { return random() % one_in == 0; };
  const auto real = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  const int64_t N = model()->config.vocab_size;
  Planned planned{make_request(prompt(1 + random() % 60, random() % 40), 1 + random() % 40)};
  Request& request = planned.request;
  SamplingParams& s = request.sampling;
  s.seed = random();
  if (chance(4)) s.temperature = chance(2) ? 0 : real(0.2, 2);
  if (chance(4)) s.top_k = static_cast<int32_t>(1 + random() % 50);
  if (chance(4)) s.top_p = real(0.1, 1);
  if (chance(3)) s.repetition_penalty = real(0.7, 1.6);
  if (chance(4)) s.presence_penalty = real(-1, 1);
  if (chance(4)) s.frequency_penalty = real(-1, 1);
  if (chance(5)) s.logit_bias = {{static_cast<int32_t>(random() % N), 4}, {2, 3}};
  if (chance(4)) s.logprobs = 2;
  if (chance(3)) request.repeat_last_n = static_cast<int64_t>(random() % 12);
  if (chance(5)) request.n = static_cast<int32_t>(2 + random() % 3);
  if (chance(4)) request.stop = {"e", "the"};
  if (chance(4)) request.stop_token_ids = random_tokens(80, N, static_cast<uint32_t>(random()));
  if (chance(4)) request.min_tokens = static_cast<int64_t>(random() % 10);
  request.ignore_eos = chance(3);
  request.keep_snapshot = chance(3);
  request.cache_turn = chance(3);
  // One completion, since another's end would otherwise decide when the request is cancelled.
  if (request.n == 1 && chance(4)) planned.cancel_after = 1 + random() % 12;
  return planned;
}

std::vector<Planned> random_plans(int count) {
  std::mt19937 random(5);
  std::vector<Planned> plans;
  for (int i = 0; i < count; ++i) plans.push_back(random_plan(random));
  return plans;
}

// Submits all of them before the engine makes its first step.
std::vector<Seen> run(Engine& engine, const std::vector<Planned>& plans) {
  std::vector<Seen> seen(plans.size());
  std::vector<RequestId> ids(plans.size());
  Gate gate;
  engine.submit(make_request(prompt(1), 1), [&](Result&&) { gate.wait(); });
  gate.wait_for_visitor();
  for (size_t i = 0; i < plans.size(); ++i) {
    const auto on_result = [&, i](Result&& result) { seen[i].result = std::move(result); };
    const auto on_delta = [&, i](const Delta& delta) {
      seen[i].tokens.push_back(delta.token);
      seen[i].text += delta.text;
      if (static_cast<int64_t>(seen[i].tokens.size()) == plans[i].cancel_after) {
        engine.cancel(ids[i]);
      }
    };
    ids[i] = engine.submit(plans[i].request, on_result, on_delta).value();
  }
  gate.open();
  engine.drain();
  return seen;
}

void expect_same(const Completion& a, const Completion& b) {
  ASSERT_EQ(a.tokens, b.tokens);
  ASSERT_EQ(a.text, b.text);
  ASSERT_EQ(a.finish_reason, b.finish_reason);
  ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
  for (size_t i = 0; i < a.logprobs.size(); ++i) test::expect_same(a.logprobs[i], b.logprobs[i]);
  ASSERT_EQ(a.snapshot != nullptr, b.snapshot != nullptr);
  if (!a.snapshot) return;
  ASSERT_EQ(a.snapshot->tokens, b.snapshot->tokens);
  ASSERT_EQ(a.snapshot->state, b.snapshot->state);
  ASSERT_EQ(a.snapshot->logits, b.snapshot->logits);
}

void expect_same(const Seen& a, const Seen& b) {
  ASSERT_EQ(a.result.error, b.result.error);
  ASSERT_EQ(a.tokens, b.tokens);
  ASSERT_EQ(a.text, b.text);
  ASSERT_EQ(a.result.completions.size(), b.result.completions.size());
  for (size_t k = 0; k < a.result.completions.size(); ++k) {
    expect_same(a.result.completions[k], b.result.completions[k]);
  }
}

TEST(RunAhead, ChangesNoBitOfWhatRequestsGet) {
  const std::vector<Planned> plans = random_plans(400);
  Engine in_turn(model(), options(false, 6, 30)), ahead(model(), options(true, 6, 30));
  const std::vector<Seen> expected = run(in_turn, plans), found = run(ahead, plans);
  int reasons[5] = {};
  int snapshots = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    expect_same(found[i], expected[i]);
    if (HasFatalFailure()) return;
    for (const Completion& completion : found[i].result.completions) {
      ++reasons[static_cast<int>(completion.finish_reason)];
      snapshots += completion.snapshot != nullptr;
    }
  }
  // All of it did occur.
  EXPECT_GT(reasons[static_cast<int>(FinishReason::kStop)], 100);
  EXPECT_GT(reasons[static_cast<int>(FinishReason::kLength)], 100);
  EXPECT_GT(reasons[static_cast<int>(FinishReason::kCancelled)], 20);
  EXPECT_GT(snapshots, 100);
  EXPECT_EQ(in_turn.stats().steps_ahead, 0);
  EXPECT_GT(ahead.stats().steps_ahead, 50);
  EXPECT_EQ(ahead.stats().output_tokens, in_turn.stats().output_tokens);
}

TEST(RunAhead, ChangesNoBitOfARequestAlone) {
  const std::vector<Planned> plans = random_plans(60);
  Engine in_turn(model(), options(false)), ahead(model(), options(true));
  for (size_t i = 0; i < plans.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    expect_same(run(ahead, {plans[i]})[0], run(in_turn, {plans[i]})[0]);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(ahead.stats().steps_ahead, ahead.stats().steps / 2);
}

TEST(RunAhead, QueuesEveryStepButTheFirstAheadWhereNothingElseHappens) {
  Engine engine(model(), options(true));
  const auto steps_of = [&](Request request) {
    const EngineStats before = engine.stats();
    engine.submit(std::move(request)).get();
    engine.drain();
    const EngineStats after = engine.stats();
    return std::pair(after.steps - before.steps, after.steps_ahead - before.steps_ahead);
  };
  // One step reads the prompt and gives the first token.
  EXPECT_EQ(steps_of(make_request(prompt(5), 30)), std::pair(int64_t{30}, int64_t{28}));
  Request kept = make_request(prompt(5), 30);
  kept.keep_snapshot = true;
  EXPECT_EQ(steps_of(kept), std::pair(int64_t{31}, int64_t{29})) << "and the closing step";
  Request several = make_request(prompt(5), 30);
  several.n = 4;
  EXPECT_EQ(steps_of(several), std::pair(int64_t{30}, int64_t{28}));
}

TEST(RunAhead, AdmitsWhoWaitsAsSoonAsAStateIsFree) {
  Engine engine(model(), options(true, 2));
  Gate gate;
  std::vector<int> order;
  const auto note = [&](int i) { return [&order, i](Result&&) { order.push_back(i); }; };
  // The second one's state goes to the third while the first runs on.
  engine.submit(make_request(prompt(4), 60), note(1), [&](const Delta&) { gate.wait(); });
  gate.wait_for_visitor();
  engine.submit(make_request(prompt(4), 10), note(2));
  engine.submit(make_request(prompt(4), 10), note(3));
  gate.open();
  engine.drain();
  EXPECT_EQ(order, (std::vector<int>{2, 3, 1}));
  EXPECT_GT(engine.stats().steps_ahead, 40);
}

TEST(RunAhead, ForgetsTheStepAheadOfAFailedOne) {
  const auto damaged = test::tiny_model();
  constexpr int32_t kBad = 700;
  const int64_t D = damaged->config.hidden_size;
  damaged->weights.embeddings.f32()[kBad * D] = std::numeric_limits<float>::quiet_NaN();
  Engine engine(damaged, options(true, 3));
  Request fine = make_request({1, 5}, 12);
  fine.sampling.logit_bias = {{.token = kBad, .bias = -1e9f}};
  const std::vector<int32_t> expected = engine.submit(fine).get().completions[0].tokens;
  // Draws the token that gives NaN, and the step that reads it has one behind it.
  Request bad = make_request({1, 5}, 12);
  bad.sampling.logit_bias = {{.token = kBad, .bias = 1e9f}};
  bad.n = 2;
  for (int i = 0; i < 3; ++i) {
    const Result failed = engine.submit(bad).get();
    EXPECT_NE(failed.error.find("NaN"), std::string::npos) << failed.error;
    EXPECT_EQ(engine.submit(fine).get().completions[0].tokens, expected);
  }
}

}  // namespace
}  // namespace gsa
