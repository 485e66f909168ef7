// The engine on every device: requests beside others, texts and perplexity of the model that ships.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <deque>
#include <future>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "model/walk.h"
#include "tests/support/devices.h"
#include "tests/support/greedy.h"
#include "tests/support/model_fixture.h"

namespace gsa {
namespace {

using test::Greedy;
using test::Random;

using EngineOn = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, EngineOn, testing::ValuesIn(test::kDevices), test::device_name);

// tale-10m has 16-bit weights. Its logits spread by about three, and beside a prompt's chunk a
// step's activations are rounded to bf16, alone they are not: 0.5e-2 of three, sqrt(2) of that for
// the difference of two logits, and a factor of two for chance.
constexpr double kGapBeside = 0.05;
// The bound the project sets itself between the devices.
constexpr double kGapAcross = 0.02;

// A request that is sometimes cut short.
struct Planned {
  Request request;
  int64_t cancel_after = -1;  // tokens; -1: never
  bool greedy() const { return request.sampling.temperature == 0; }
};

std::vector<Planned> plan_requests(int count) {
  Random random(21);
  std::vector<Planned> all;
  const int64_t N = test::shipped_model()->config.vocab_size;
  for (int i = 0; i < count; ++i) {
    const int64_t length = random.chance(0.2) ? 80 + random.below(80) : 1 + random.below(30);
    Planned planned{test::greedy_request(
        test::random_tokens(length, N, static_cast<uint32_t>(500 + i)), 4 + random.below(9))};
    SamplingParams& p = planned.request.sampling;
    if (i % 3 == 2) {
      p.temperature = 0.5 + random.real();
      p.top_k = static_cast<int32_t>(random.below(100));
      p.top_p = 0.5 + 0.5 * random.real();
      p.min_p = 0.05 * random.real();
      p.repetition_penalty = 1 + 0.2 * random.real();
      p.seed = static_cast<uint64_t>(i);
    }
    // Far from the end, so that the cancellation is in time.
    if (i % 7 == 3) {
      planned.request.max_tokens = 5000;
      planned.cancel_after = random.below(12);
    }
    all.push_back(std::move(planned));
  }
  return all;
}

// Runs them all on one engine, coming at random times.
std::vector<Result> run_together(Engine& engine, const std::vector<Planned>& all) {
  Random random(22);
  std::vector<std::promise<Result>> promises(all.size());
  std::deque<std::atomic<RequestId>> ids(all.size());
  std::vector<std::future<Result>> futures;
  for (size_t i = 0; i < all.size(); ++i) {
    futures.push_back(promises[i].get_future());
    const auto on_result = [&promises, i](Result&& r) { promises[i].set_value(std::move(r)); };
    const auto on_delta = [&, i, seen = int64_t{0}](const Delta&) mutable {
      if (all[i].cancel_after < 0 || ++seen <= all[i].cancel_after) return;
      while (ids[i] == 0) std::this_thread::yield();  // submit() is returning it
      engine.cancel(ids[i]);
    };
    ids[i] = engine.submit(all[i].request, on_result, on_delta).value();
    if (random.chance(0.3))
      std::this_thread::sleep_for(std::chrono::milliseconds(random.below(30)));
  }
  std::vector<Result> results;
  for (auto& future : futures) results.push_back(future.get());
  return results;
}

TEST_P(EngineOn, GivesARequestTheSameTextAloneAndBesideOthers) {
  // tests/engine has more of this for the CPU.
  const std::vector<Planned> all = plan_requests(device() == "cpu" ? 24 : 60);
  Engine crowd(test::shipped_model(),
               {.device = device(), .threads = 2, .states = 7, .step_tokens = 96});
  const std::vector<Result> together = run_together(crowd, all);
  Engine engine(test::shipped_model(), {.device = device(), .threads = 2, .states = 1});
  for (size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i << (all[i].greedy() ? ", greedy" : ""));
    ASSERT_EQ(together[i].error, "");
    const Completion& found = together[i].completions[0];
    Request request = all[i].request;
    if (all[i].cancel_after >= 0) {
      EXPECT_EQ(found.finish_reason, FinishReason::kCancelled);
      EXPECT_GT(static_cast<int64_t>(found.tokens.size()), all[i].cancel_after);
      request.max_tokens = static_cast<int64_t>(found.tokens.size());
    } else {
      EXPECT_EQ(found.finish_reason, FinishReason::kLength);
      ASSERT_EQ(static_cast<int64_t>(found.tokens.size()), request.max_tokens);
    }
    // Random draws fall on another token wherever the logits differ by anything.
    if (!all[i].greedy() && device() != "cpu") continue;
    const Result alone = engine.submit(request).get();
    ASSERT_EQ(alone.error, "");
    test::expect_greedy(found.tokens, test::greedy_of(alone.completions[0]),
                        device() == "cpu" ? 0 : kGapBeside);
  }
}

TEST_P(EngineOn, DrawsTheSameTokensWhenARunIsRepeated) {
  std::vector<std::vector<int32_t>> before;
  for (int time = 0; time < 2; ++time) {
    Engine engine(test::shipped_model(), {.device = device(), .threads = 2, .states = 1});
    std::vector<std::vector<int32_t>> found;
    for (const Planned& planned : plan_requests(8)) {
      Request request = planned.request;
      request.max_tokens = 16;
      found.push_back(engine.submit(request).get().completions[0].tokens);
    }
    if (time > 0) {
      EXPECT_EQ(found, before);
    }
    before = std::move(found);
  }
}

// Every way to end and everything that looks at tokens before, one request after the other, so that
// all steps have the same shape.
std::vector<Completion> completions(Engine& engine) {
  const int64_t N = test::shipped_model()->config.vocab_size;
  std::vector<Completion> all;
  for (uint32_t i = 0; i < 12; ++i) {
    Request request = test::greedy_request(test::random_tokens(10, N, i), 16);
    SamplingParams& p = request.sampling;
    if (i % 2 == 1) p.temperature = 0.9;
    p.seed = i;
    p.repetition_penalty = i % 3 == 0 ? 1.4 : 1;
    p.presence_penalty = i % 3 == 1 ? 0.5 : 0;
    p.frequency_penalty = i % 3 == 1 ? 0.5 : 0;
    if (i % 4 < 2) request.repeat_last_n = i;
    if (i % 4 == 1) request.stop = {"e"};
    if (i % 4 == 2) request.stop_token_ids = test::random_tokens(N / 8, N, 100 + i);
    request.min_tokens = 3;
    request.keep_snapshot = i % 2 == 0;
    request.n = i % 4 == 3 ? 3 : 1;
    Result result = engine.submit(request).get();
    EXPECT_EQ(result.error, "");
    std::ranges::move(result.completions, std::back_inserter(all));
  }
  return all;
}

TEST_P(EngineOn, GivesTheSameBitsWhetherStepsAreQueuedAheadOrInTurn) {
  const auto run = [this](std::optional<bool> run_ahead, bool is_ahead) {
    Engine engine(test::shipped_model(),
                  {.device = device(), .threads = 2, .states = 3, .run_ahead = run_ahead});
    std::vector<Completion> found = completions(engine);
    const EngineStats stats = engine.stats();
    EXPECT_EQ(stats.steps_ahead > stats.steps / 2, is_ahead);
    EXPECT_EQ(stats.device_seconds > 0, device() == "cuda");
    return found;
  };
  const std::vector<Completion> in_turn = run(false, false);
  int stopped = 0;
  for (const auto& ahead : {run(true, true), run(std::nullopt, device() == "cuda")}) {
    ASSERT_EQ(ahead.size(), in_turn.size());
    for (size_t i = 0; i < ahead.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "completion " << i);
      const Completion &a = ahead[i], &b = in_turn[i];
      EXPECT_EQ(a.tokens, b.tokens);
      EXPECT_EQ(a.text, b.text);
      EXPECT_EQ(a.finish_reason, b.finish_reason);
      stopped += a.finish_reason == FinishReason::kStop;
      ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
      for (size_t t = 0; t < a.logprobs.size(); ++t) {
        EXPECT_EQ(a.logprobs[t].logprob, b.logprobs[t].logprob);
      }
      ASSERT_EQ(a.snapshot != nullptr, b.snapshot != nullptr);
      if (!a.snapshot) continue;
      EXPECT_EQ(a.snapshot->tokens, b.snapshot->tokens);
      EXPECT_EQ(a.snapshot->state, b.snapshot->state);
      EXPECT_EQ(a.snapshot->logits, b.snapshot->logits);
    }
  }
  EXPECT_GT(stopped, 4);
}

TEST_P(EngineOn, TellsTheTalesThatTheCpuTells) {
  Engine engine(test::shipped_model(), {.device = device(), .threads = 2, .states = 3});
  for (const char* prompt : {"Once upon a time there was a little girl",
                             "The wizard looked at the lion and said, \"", "One day the king"}) {
    SCOPED_TRACE(prompt);
    const std::vector<int32_t> tokens = test::shipped_model()->tokenizer->encode(prompt);
    const Greedy expected = test::greedy_on_cpu(*test::shipped_model(), tokens, 64);
    const Result result = engine.submit(test::greedy_request(tokens, 64)).get();
    ASSERT_EQ(result.error, "");
    ASSERT_EQ(result.completions[0].tokens.size(), 64u);
    test::expect_greedy(result.completions[0].tokens, expected, device() == "cpu" ? 0 : kGapAcross);
  }
}

// One engine begins the text, keeps a snapshot, and the other goes on with it.
Completion begun_and_ended(const std::string& begin, const std::string& end,
                           const std::vector<int32_t>& prompt) {
  Request first = test::greedy_request(prompt, 20);
  first.keep_snapshot = true;
  Engine beginning(test::shipped_model(), {.device = begin, .threads = 2, .states = 1});
  const Completion begun = beginning.submit(first).get().completions.at(0);
  Request second = test::greedy_request({}, 20);
  second.from = begun.snapshot;
  Engine ending(test::shipped_model(), {.device = end, .threads = 2, .states = 1});
  Completion ended = ending.submit(second).get().completions.at(0);
  ended.tokens.insert(ended.tokens.begin(), begun.tokens.begin(), begun.tokens.end());
  return ended;
}

TEST_P(EngineOn, GoesOnWithATextBegunOnAnotherDevice) {
  const std::vector<int32_t> prompt = test::shipped_model()->tokenizer->encode("One day the king");
  const Greedy expected = test::greedy_on_cpu(*test::shipped_model(), prompt, 40);
  for (const auto& [begin, end] : {std::pair<std::string, std::string>("cpu", device()),
                                   std::pair<std::string, std::string>(device(), "cpu")}) {
    SCOPED_TRACE(begin + " to " + end);
    const Completion text = begun_and_ended(begin, end, prompt);
    ASSERT_EQ(text.tokens.size(), 40u);
    test::expect_greedy(text.tokens, expected, device() == "cpu" ? 0 : kGapAcross);
  }
}

TEST_P(EngineOn, GivesSnapshotsThatCanBeReadWhenItIsGone) {
  const int64_t N = test::shipped_model()->config.vocab_size;
  for (DType type : kStateTypes) {
    SCOPED_TRACE(dtype_name(type));
    const auto engine = [&] {
      return std::make_unique<Engine>(
          test::shipped_model(),
          EngineOptions{.device = device(), .threads = 2, .states = 1, .state_type = type});
    };
    std::vector<std::shared_ptr<const Snapshot>> read, unread;
    for (auto* kept : {&read, &unread}) {
      const auto running = engine();
      for (uint32_t i = 0; i < 6; ++i) {
        Request request = test::greedy_request(test::random_tokens(9, N, i), i);
        request.keep_snapshot = true;
        kept->push_back(running->submit(request).get().completions.at(0).snapshot);
        if (kept == &read) {
          const float* state = kept->back()->state.data();
          EXPECT_FALSE(std::all_of(state, state + 100, [](float x) { return x == 0; }));
        }
      }
    }
    for (size_t i = 0; i < read.size(); ++i) {
      EXPECT_EQ(unread[i]->state, read[i]->state);
      EXPECT_EQ(unread[i]->logits, read[i]->logits);
    }
    Request next = test::greedy_request({5}, 4);
    next.from = unread[3];
    EXPECT_EQ(engine()->submit(next).get().error, "");
  }
}

// A cache of four snapshots: nearly every request puts one out, some while they are restored.
TEST_P(EngineOn, AnswersFromACacheThatEvictsAsItInsertsWhatItAnswersWithout) {
  const GsaConfig& config = test::shipped_model()->config;
  std::vector<Request> requests;
  for (uint32_t i = 0; i < 40; ++i) {
    std::vector<int32_t> tokens = test::random_tokens(30, config.vocab_size, i % 2);
    const std::vector<int32_t> own = test::random_tokens(i % 5, config.vocab_size, 10 + i);
    tokens.insert(tokens.end(), own.begin(), own.end());
    requests.push_back(test::greedy_request(std::move(tokens), 6));
    requests.back().cache_turn = i % 4 == 0;
  }
  Engine plain(test::shipped_model(), {.device = device(), .threads = 2, .states = 1});
  Engine cached(test::shipped_model(),
                {.device = device(),
                 .threads = 2,
                 .states = 4,
                 .cache_bytes = 4 * (config.state_bytes() + 4 * config.vocab_size + 1024)});
  std::vector<std::future<Result>> found;
  for (const Request& request : requests) found.push_back(cached.submit(request));
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(testing::Message() << "request " << i);
    const Result result = found[i].get(), alone = plain.submit(requests[i]).get();
    ASSERT_EQ(result.error, "");
    test::expect_greedy(result.completions[0].tokens, test::greedy_of(alone.completions[0]),
                        device() == "cpu" ? 0 : kGapBeside);
  }
  EXPECT_GT(cached.stats().cache.hits, 5);
  EXPECT_GT(cached.stats().cache.evictions, 5);
}

constexpr const char* kStory =
    "Long ago, at the edge of a dark forest, there lived a miller who had three sons. The eldest "
    "was strong, the second was clever, but the youngest was so gentle that the birds ate out of "
    "his hand. One winter the mill wheel froze, and there was no bread in the house. \"Go out into "
    "the world,\" said the father, \"and come back when you have found something worth more than "
    "gold.\" So the three brothers took their coats and went down the white road together. At the "
    "crossing they met an old woman with a bundle of sticks upon her back. \"Help me, kind "
    "gentlemen,\" she cried, \"for my feet are cold and my house is far away.\" The eldest laughed "
    "and walked on, and the second said that he had no time to lose; but the youngest lifted the "
    "bundle to his own shoulder and carried it up the hill. When they came to the little house the "
    "old woman gave him a silver bell. \"Ring it once,\" she said, \"when you do not know the way, "
    "and twice when you are afraid; but the third time it will ring of itself, and then you must "
    "run as fast as your legs can carry you.\"";

// Mean -ln p of a text's tokens from the logits before each, in double precision.
double mean_nll(test::Runner& run, const std::vector<int32_t>& tokens) {
  const std::vector<float> logits = run.logits(*run.states.acquire(), tokens);
  const size_t N = run.model.config().vocab_size;
  double nll = 0;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    const float* row = logits.data() + t * N;
    double sum = 0;
    for (size_t i = 0; i < N; ++i) sum += std::exp(double{row[i]});
    nll += std::log(sum) - row[tokens[t + 1]];
  }
  return nll / static_cast<double>(tokens.size() - 1);
}

TEST_P(EngineOn, FindsATextAsPerplexingAsTheCpu) {
  const LoadedModel& model = *test::shipped_model();
  const std::vector<int32_t> tokens = model.tokenizer->encode(kStory);
  ASSERT_GT(tokens.size(), 200u);
  test::Runner cpu(model.config, model.weights, 2, 1, 1);
  const double expected = std::exp(mean_nll(cpu, tokens));
  EXPECT_LT(expected, 200) << "the model does not know English";
  // One token a step on the CPU is the yardstick itself.
  for (int64_t step_tokens :
       device() == "cpu" ? std::vector<int64_t>{128} : std::vector<int64_t>{1, 16, 128}) {
    test::Runner run(backend(), model.config, model.weights, step_tokens, 1);
    const double bound = device() == "cpu" ? 1e-6 : 0.003;
    EXPECT_NEAR(std::exp(mean_nll(run, tokens)) / expected, 1, bound)
        << "in steps of " << step_tokens;
  }
}

}  // namespace
}  // namespace gsa
