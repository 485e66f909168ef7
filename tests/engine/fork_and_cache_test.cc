// Snapshots as the engine uses them: fork and rewind through requests, and the prefix cache.

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "tests/support/engine_fixture.h"

namespace gsa {
namespace {

using test::make_request;
using test::model;
using test::prompt;

using Tokens = std::vector<int32_t>;

Tokens joined(std::initializer_list<Tokens> parts) {
  Tokens all;
  for (const Tokens& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

class SnapshotTest : public test::BothWays {
 protected:
  static EngineOptions options(int64_t cached_states = 0) {
    return {.device = "cpu",
            .threads = 1,
            .states = 4,
            .step_tokens = 32,
            .cache_bytes = cached_states * (model()->config.state_bytes() + 8192),
            .run_ahead = run_ahead()};
  }
};

using Fork = SnapshotTest;
using Rewind = SnapshotTest;
using CachedEngine = SnapshotTest;
INSTANTIATE_TEST_SUITE_P(Steps, Fork, testing::Bool(), test::way_name);
INSTANTIATE_TEST_SUITE_P(Steps, Rewind, testing::Bool(), test::way_name);
INSTANTIATE_TEST_SUITE_P(Steps, CachedEngine, testing::Bool(), test::way_name);

Result run(Engine& engine, const Request& request) { return engine.submit(request).get(); }

// --- Fork and rewind ---

TEST_P(Fork, GoesOnFromASnapshotExactlyAsIfTheWholeTextHadBeenRead) {
  for (DType type : kStateTypes) {
    SCOPED_TRACE(dtype_name(type));
    EngineOptions options = this->options();
    options.state_type = type;
    Engine engine(model(), options);
    Request first = make_request(prompt(20), 15, 4);
    first.keep_snapshot = true;
    const Completion begun = run(engine, first).completions[0];
    ASSERT_TRUE(begun.snapshot);
    EXPECT_EQ(begun.snapshot->tokens, joined({first.prompt, begun.tokens}));

    Request next = make_request(prompt(5, 2), 10, 9);
    next.from = begun.snapshot;
    next.keep_snapshot = true;
    const Result forked = run(engine, next);
    EXPECT_EQ(forked.prompt_tokens, 5);

    Request whole = make_request(joined({first.prompt, begun.tokens, next.prompt}), 10, 9);
    whole.keep_snapshot = true;
    const Completion expected = run(engine, whole).completions[0];
    EXPECT_EQ(forked.completions[0].tokens, expected.tokens);
    EXPECT_EQ(forked.completions[0].text, expected.text);
    EXPECT_EQ(forked.completions[0].snapshot->tokens, expected.snapshot->tokens);
    EXPECT_EQ(forked.completions[0].snapshot->state, expected.snapshot->state);
    EXPECT_EQ(forked.completions[0].snapshot->logits, expected.snapshot->logits);
  }
}

TEST_P(Fork, ContinuesWithoutAPromptWhereTheSnapshotStopped) {
  Engine engine(model(), options());
  Request whole = make_request(prompt(20), 30);
  whole.sampling.temperature = 0;
  const Tokens all = run(engine, whole).completions[0].tokens;
  Request head = whole;
  head.max_tokens = 12;
  head.keep_snapshot = true;
  Request tail = make_request({}, 18);
  tail.sampling.temperature = 0;
  tail.from = run(engine, head).completions[0].snapshot;
  EXPECT_EQ(joined({tail.from->tokens, run(engine, tail).completions[0].tokens}),
            joined({whole.prompt, all}));
  tail.max_tokens = 1;  // ends before any step is made
  EXPECT_EQ(run(engine, tail).completions[0].tokens, Tokens{all[12]});
  tail.max_tokens = 0;
  tail.keep_snapshot = true;
  EXPECT_EQ(run(engine, tail).completions[0].snapshot->state, tail.from->state);
}

TEST_P(Fork, BranchesOfOneSnapshotDoNotDisturbEachOther) {
  Engine engine(model(), options());
  Request first = make_request(prompt(40), 0);
  first.keep_snapshot = true;
  const auto trunk = run(engine, first).completions[0].snapshot;
  std::vector<std::future<Result>> branches;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    Request branch = make_request(prompt(1 + seed, 5), 20, seed);
    branch.from = trunk;
    branches.push_back(engine.submit(branch));
  }
  for (uint64_t seed = 0; seed < 12; ++seed) {
    const Request whole = make_request(joined({first.prompt, prompt(1 + seed, 5)}), 20, seed);
    EXPECT_EQ(branches[seed].get().completions[0].tokens, run(engine, whole).completions[0].tokens);
  }
}

TEST_P(Rewind, ToAnEarlierTurnIsExactHoweverFarTheTalkWentOn) {
  Engine engine(model(), options());
  std::vector<std::shared_ptr<const Snapshot>> turns = {nullptr};
  std::vector<Tokens> answers;
  const auto turn = [&](size_t i, uint64_t seed) {
    Request request = make_request(prompt(6, 10 + i), 8, seed);
    request.from = turns[i];
    request.keep_snapshot = true;
    return run(engine, request).completions[0];
  };
  for (size_t i = 0; i < 4; ++i) {
    const Completion answer = turn(i, i);
    answers.push_back(answer.tokens);
    turns.push_back(answer.snapshot);
  }
  for (size_t i : {2, 0, 3, 1}) EXPECT_EQ(turn(i, i).tokens, answers[i]) << "turn " << i;
  EXPECT_NE(turn(2, 99).tokens, answers[2]) << "a retry with another seed";
}

TEST_P(Fork, OfSeveralCompletionsGivesEachItsOwnSnapshot) {
  Engine engine(model(), options());
  Request request = make_request(prompt(10), 6, 3);
  request.n = 3;
  request.keep_snapshot = true;
  const Result result = run(engine, request);
  for (const Completion& c : result.completions) {
    ASSERT_TRUE(c.snapshot);
    EXPECT_EQ(c.snapshot->tokens, joined({request.prompt, c.tokens}));
  }
  EXPECT_NE(result.completions[0].snapshot->state, result.completions[1].snapshot->state);
}

// --- The prefix cache within the engine ---

TEST_P(CachedEngine, AnswersBitForBitAsWithoutTheCache) {
  Engine plain(model(), options());
  Engine cached(model(), options(6));
  const Tokens system = prompt(50, 1);
  for (uint32_t i = 0; i < 40; ++i) {
    Request request = make_request(joined({system, prompt(1 + i * 7 % 60, 100 + i % 5)}), 10, i);
    request.sampling.logprobs = 2;
    request.cache_turn = i % 3 == 0;
    request.n = 1 + i % 2;
    const Result a = run(cached, request), b = run(plain, request);
    for (int32_t k = 0; k < request.n; ++k) {
      ASSERT_EQ(a.completions[k].tokens, b.completions[k].tokens) << i;
      ASSERT_EQ(a.completions[k].text, b.completions[k].text);
      for (size_t t = 0; t < 10; ++t) {
        ASSERT_EQ(a.completions[k].logprobs[t].logprob, b.completions[k].logprobs[t].logprob);
      }
    }
  }
  EXPECT_GE(cached.stats().cache.hits, 35);
  EXPECT_GT(cached.stats().cache.evictions, 0);
  EXPECT_EQ(plain.stats().cache.hits + plain.stats().cache.misses, 0);
}

TEST_P(CachedEngine, ReadsNothingOfAPromptThatItHasReadBefore) {
  Engine engine(model(), options(10));
  const Request request = make_request(prompt(100), 5, 1);
  const Result first = run(engine, request);
  EXPECT_EQ(first.cached_tokens, 0);
  EXPECT_EQ(engine.stats().prompt_tokens, 100);
  const Result second = run(engine, request);
  EXPECT_EQ(second.cached_tokens, 100);
  EXPECT_EQ(engine.stats().prompt_tokens, 100);
  EXPECT_EQ(second.completions[0].tokens, first.completions[0].tokens);
  Request one = request;  // ends without a single step
  one.max_tokens = 1;
  EXPECT_EQ(run(engine, one).completions[0].tokens, Tokens{first.completions[0].tokens[0]});
}

TEST_P(CachedEngine, KeepsTheJunctionWhereTwoPromptsPart) {
  Engine engine(model(), options(10));
  const Tokens system = prompt(70);
  run(engine, make_request(joined({system, {1, 2, 3}}), 2));
  const Result second = run(engine, make_request(joined({system, {4, 5, 6}}), 2));
  EXPECT_EQ(second.cached_tokens, 0) << "where they part was not known yet";
  const Result third = run(engine, make_request(joined({system, {7, 8, 9}}), 2));
  EXPECT_EQ(third.cached_tokens, 70);
}

TEST_P(CachedEngine, KeepsTheEndOfATurnThatIsToBeContinued) {
  Engine engine(model(), options(10));
  for (bool cache_turn : {false, true}) {
    Request turn = make_request(prompt(30, cache_turn ? 1 : 2), 10);
    turn.cache_turn = cache_turn;
    const Result first = run(engine, turn);
    EXPECT_FALSE(first.completions[0].snapshot) << "was not asked for";
    const Tokens said = joined({turn.prompt, first.completions[0].tokens});
    const Result second = run(engine, make_request(joined({said, prompt(9, 3)}), 2));
    EXPECT_EQ(second.cached_tokens, cache_turn ? 40 : 30);
  }
}

TEST_P(CachedEngine, LeavesOutRequestsFromASnapshotAndThoseThatScoreTheirPrompt) {
  Engine engine(model(), options(10));
  Request first = make_request(prompt(30), 0);
  first.keep_snapshot = true;
  Request forged = make_request({}, 3);
  auto snapshot = std::make_shared<Snapshot>(*run(engine, first).completions[0].snapshot);
  snapshot->tokens = prompt(30, 77);  // of another text
  forged.from = snapshot;
  forged.cache_turn = true;
  run(engine, forged);
  EXPECT_EQ(run(engine, make_request(prompt(30, 77), 3)).cached_tokens, 0);
  Request scored = make_request(prompt(30), 1);
  scored.prompt_logprobs = true;
  const Result result = run(engine, scored);
  EXPECT_EQ(result.cached_tokens, 0);
  EXPECT_EQ(result.prompt_logprobs.size(), 29u);
}

}  // namespace
}  // namespace gsa
