// What an engine does with many requests: who waits, who runs, who is ended, and what it refuses.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <limits>

#include "engine/engine.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/error_of.h"

namespace gsa {
namespace {

using test::Gate;
using test::make_request;
using test::model;
using test::prompt;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::chrono_literals;

using EngineRequests = test::EngineBothWays;
INSTANTIATE_TEST_SUITE_P(Steps, EngineRequests, testing::Bool(), test::way_name);

TEST_P(EngineRequests, CancelsARequestThatWaitsOneInItsPromptAndOneThatDecodes) {
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

TEST_P(EngineRequests, EndsLateRequestsWhetherTheyRunOrWait) {
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

TEST_P(EngineRequests, SaysAtOnceThatTheQueueIsFull) {
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

TEST_P(EngineRequests, FinishesWhatItHasTakenAndTakesNothingMoreOnceItStopsAccepting) {
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

TEST_P(EngineRequests, DeliversEveryResultWhenItIsDestroyed) {
  std::vector<std::future<Result>> futures;
  {
    Engine engine(model(), options(2));
    for (int i = 0; i < 6; ++i) futures.push_back(engine.submit(make_request(prompt(4), 1000000)));
  }
  for (std::future<Result>& future : futures) {
    EXPECT_EQ(future.get().completions.at(0).finish_reason, FinishReason::kCancelled);
  }
}

TEST_P(EngineRequests, RunsRequestsOfHigherPriorityFirst) {
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

TEST_P(EngineRequests, DecodesRunningStreamsOnceForEachChunkOfALongPrompt) {
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

TEST_P(EngineRequests, EndsTheRequestsOfAFailedStepWithItsMessageAndServesTheNext) {
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

TEST_P(EngineRequests, EndsOnlyTheRequestWhoseSnapshotIsDamaged) {
  Engine engine(model(), options(2));
  Request bad = make_request({}, 5);
  Snapshot snapshot;
  snapshot.tokens = {1};
  snapshot.state = std::vector<float>(model()->config.state_bytes() / sizeof(float));
  snapshot.logits =
      std::vector<float>(model()->config.vocab_size, std::numeric_limits<float>::quiet_NaN());
  bad.from = std::make_shared<Snapshot>(snapshot);
  auto running = engine.submit(make_request(prompt(5), 200));
  EXPECT_THAT(engine.submit(bad).get().error, HasSubstr("NaN"));
  EXPECT_EQ(running.get().completions[0].tokens.size(), 200u);
}

TEST_P(EngineRequests, RefusesStatesThatDoNotFitWithTheFigures) {
  const auto start = [](int64_t states, int64_t memory) {
    return test::error_of(
        [&] { Engine(model(), {.device = "cpu", .states = states, .memory_bytes = memory}); });
  };
  EXPECT_THAT(start(int64_t{1} << 40, 0),
              AllOf(HasSubstr("1099511627776 states"), HasSubstr("GiB"), HasSubstr("at most")));
  EXPECT_THAT(start(0, 100), AllOf(HasSubstr("--memory"), HasSubstr("one state")));
}

TEST_P(EngineRequests, HoldsAsManyStatesAsTheMemoryTakes) {
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
