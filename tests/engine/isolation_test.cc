// What a request gets depends on the request alone.

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "engine/engine.h"
#include "tests/support/engine_fixture.h"

namespace gsa {
namespace {

constexpr int kRequests = 500;
constexpr int kSubmitters = 3;

// A request of any length and any sampling; several begin alike.
Request random_request(std::mt19937& random, const GsaConfig& config) {
  const auto chance = [&](int one_in) { return random() % one_in == 0; };
  const auto real = [&](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  std::vector<int32_t> prompt;
  if (chance(2)) prompt = test::random_tokens(20 + random() % 60, config.vocab_size, random() % 3);
  const auto rest = test::random_tokens(1 + random() % (chance(10) ? 200 : 30), config.vocab_size,
                                        static_cast<uint32_t>(random()));
  prompt.insert(prompt.end(), rest.begin(), rest.end());
  Request request = test::make_request(std::move(prompt), 1 + random() % 40, random());
  SamplingParams& s = request.sampling;
  if (chance(4)) s.temperature = chance(2) ? 0 : real(0.2, 2);
  if (chance(4)) s.top_k = static_cast<int32_t>(1 + random() % 50);
  if (chance(4)) s.top_p = real(0.1, 1);
  if (chance(4)) s.min_p = real(0, 0.3);
  if (chance(6)) s.typical_p = real(0.2, 1);
  if (chance(4)) s.repetition_penalty = real(0.8, 1.5);
  if (chance(6)) s.presence_penalty = real(-1, 1);
  if (chance(6)) s.frequency_penalty = real(-1, 1);
  if (chance(6)) s.logit_bias = {{static_cast<int32_t>(random() % config.vocab_size), 3}};
  if (chance(5)) s.logprobs = 2;
  if (chance(4)) request.repeat_last_n = static_cast<int64_t>(random() % 30);
  if (chance(8)) request.n = static_cast<int32_t>(2 + random() % 3);
  if (chance(5)) request.stop = {"e", "the"};
  if (chance(8)) request.prompt_logprobs = true;
  if (chance(8)) request.cache_turn = true;
  request.ignore_eos = chance(2);
  request.priority = static_cast<int32_t>(random() % 3);
  return request;
}

struct Case {
  Request request;
  bool cancel = false;
  int cancel_after = 0;  // tokens; 0: right after submission
  std::atomic<int> tokens = 0;
  Result result;
};

void submit(Engine& engine, Case& c) {
  // The id is known only after submission, when tokens may be coming already.
  const auto id = std::make_shared<std::promise<RequestId>>();
  const std::shared_future<RequestId> known = id->get_future();
  const auto submitted = engine.submit(
      c.request, [&c](Result&& result) { c.result = std::move(result); },
      [&c, &engine, known](const Delta&) {
        if (++c.tokens == c.cancel_after && c.cancel) engine.cancel(known.get());
      });
  ASSERT_TRUE(submitted);
  id->set_value(*submitted);
  if (c.cancel && c.cancel_after == 0) engine.cancel(*submitted);
}

// Without the replacement characters that stand for a character that was cut.
std::string_view whole_characters(std::string_view text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  while (text.ends_with(kReplacement)) text.remove_suffix(kReplacement.size());
  return text;
}

// Bit for bit equal where the crowded run finished, a beginning of it where it was cancelled.
void expect_same(const Result& crowded, const Result& alone) {
  ASSERT_EQ(crowded.completions.size(), alone.completions.size());
  for (size_t k = 0; k < alone.completions.size(); ++k) {
    const Completion& a = crowded.completions[k];
    const Completion& b = alone.completions[k];
    if (a.finish_reason == FinishReason::kCancelled) {
      ASSERT_LE(a.tokens.size(), b.tokens.size());
      ASSERT_TRUE(std::equal(a.tokens.begin(), a.tokens.end(), b.tokens.begin()));
      ASSERT_TRUE(b.text.starts_with(whole_characters(a.text))) << a.text << " / " << b.text;
      continue;
    }
    ASSERT_EQ(a.tokens, b.tokens);
    ASSERT_EQ(a.text, b.text);
    ASSERT_EQ(a.finish_reason, b.finish_reason);
    ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
    for (size_t i = 0; i < b.logprobs.size(); ++i) test::expect_same(a.logprobs[i], b.logprobs[i]);
  }
  if (crowded.prompt_logprobs.size() < alone.prompt_logprobs.size()) return;  // cancelled
  for (size_t i = 0; i < alone.prompt_logprobs.size(); ++i) {
    test::expect_same(crowded.prompt_logprobs[i], alone.prompt_logprobs[i]);
  }
}

using Isolation = test::BothWays;
INSTANTIATE_TEST_SUITE_P(Steps, Isolation, testing::Bool(), test::way_name);

TEST_P(Isolation, EveryFinishedTextEqualsTheOneGeneratedAlone) {
  const auto model = test::tiny_model();
  std::mt19937 random(11);
  std::vector<Case> cases(kRequests);
  for (int i = 0; i < kRequests; ++i) {
    cases[i].request = random_request(random, model->config);
    cases[i].cancel = i % 3 == 0;
    cases[i].cancel_after = static_cast<int>(random() % 25);
  }
  Engine crowded(model, {.device = "cpu",
                         .threads = 2,
                         .states = 7,
                         .step_tokens = 48,
                         .cache_bytes = 40 * model->config.state_bytes(),
                         .run_ahead = run_ahead()});
  std::vector<std::thread> submitters;
  for (int s = 0; s < kSubmitters; ++s) {
    submitters.emplace_back([&, s] {
      std::mt19937 pauses(s);
      for (int i = s; i < kRequests; i += kSubmitters) {
        submit(crowded, cases[i]);
        std::this_thread::sleep_for(std::chrono::microseconds(pauses() % 3000));
      }
    });
  }
  for (std::thread& thread : submitters) thread.join();
  crowded.drain();

  Engine single(model, {.device = "cpu", .threads = 1, .states = 4, .step_tokens = 512});
  int finished = 0, cancelled = 0;
  for (Case& c : cases) {
    expect_same(c.result, single.submit(c.request).get());
    ASSERT_FALSE(HasFatalFailure()) << "request " << &c - cases.data();
    (c.result.completions[0].finish_reason == FinishReason::kCancelled ? cancelled : finished)++;
  }
  // Both kinds did occur, and the cache did its part.
  EXPECT_GE(finished, 2 * kRequests / 3);
  EXPECT_GE(cancelled, kRequests / 10);
  EXPECT_GT(crowded.stats().cache.hits, 20);
  EXPECT_GT(crowded.stats().cache.evictions, 20);
}

}  // namespace
}  // namespace gsa
