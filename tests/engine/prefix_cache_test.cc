#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <list>
#include <random>

namespace gsa {
namespace {

using Tokens = std::vector<int32_t>;

constexpr int64_t kRoomy = int64_t{1} << 40;

// A snapshot of 1,000 floats: the bytes of its tokens hardly count.
std::shared_ptr<const Snapshot> snapshot(const Tokens& tokens) {
  auto s = std::make_shared<Snapshot>();
  s->tokens = tokens;
  s->state = std::vector<float>(1000);
  return s;
}

Tokens range(int32_t begin, int32_t end) {
  Tokens tokens;
  for (int32_t t = begin; t < end; ++t) tokens.push_back(t);
  return tokens;
}

Tokens joined(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

int64_t hit_length(PrefixCache& cache, const Tokens& prompt) {
  const PrefixCache::Lookup found = cache.find(prompt);
  if (!found.hit) return 0;
  const Tokens& tokens = found.hit->tokens;
  EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), prompt.begin()));
  return static_cast<int64_t>(tokens.size());
}

TEST(PrefixCache, FindsTheLongestPrefixOfAnyLength) {
  PrefixCache cache(kRoomy);
  for (int32_t length : {50, 3, 7, 20, 8}) cache.insert(snapshot(range(0, length)));
  const std::pair<int32_t, int64_t> expected[] = {{2, 0},  {3, 3},   {6, 3},   {7, 7},   {8, 8},
                                                  {19, 8}, {20, 20}, {49, 20}, {50, 50}, {90, 50}};
  for (const auto& [length, hit] : expected) EXPECT_EQ(hit_length(cache, range(0, length)), hit);
  EXPECT_EQ(hit_length(cache, joined(range(0, 7), {99})), 7);
  EXPECT_EQ(hit_length(cache, {99, 0, 1, 2}), 0);
}

TEST(PrefixCache, DropsTheLeastRecentlyUsedBeyondItsBytes) {
  PrefixCache probe(kRoomy);
  probe.insert(snapshot({1}));
  PrefixCache cache(3 * probe.bytes());
  for (int32_t t : {1, 2, 3}) cache.insert(snapshot({t}));
  EXPECT_EQ(cache.size(), 3);
  EXPECT_EQ(hit_length(cache, {1, 5}), 1);  // a use
  EXPECT_TRUE(cache.touch(Tokens{2}));      // another
  cache.insert(snapshot({4}));
  EXPECT_FALSE(cache.touch(Tokens{3}));
  for (int32_t t : {1, 2, 4}) EXPECT_TRUE(cache.touch(Tokens{t})) << t;
  EXPECT_EQ(cache.counters().evictions, 1);
  EXPECT_EQ(cache.bytes(), 3 * probe.bytes());
}

TEST(PrefixCache, KeepsNothingThatAloneExceedsItsBytes) {
  PrefixCache cache(1000);
  cache.insert(snapshot({1, 2}));
  EXPECT_EQ(cache.size(), 0);
  EXPECT_EQ(cache.bytes(), 0);
}

TEST(PrefixCache, KeepsTheSameTokensOnce) {
  PrefixCache cache(kRoomy);
  cache.insert(snapshot({1, 2}));
  const int64_t bytes = cache.bytes();
  cache.insert(snapshot({1, 2}));
  EXPECT_EQ(cache.size(), 1);
  EXPECT_EQ(cache.bytes(), bytes);
}

TEST(PrefixCache, CountsHitsMissesAndTheTokensSaved) {
  PrefixCache cache(kRoomy);
  cache.insert(snapshot(range(0, 10)));
  cache.find(range(0, 20));
  cache.find(range(0, 10));
  cache.find(range(5, 20));
  EXPECT_EQ(cache.counters().hits, 2);
  EXPECT_EQ(cache.counters().misses, 1);
  EXPECT_EQ(cache.counters().hit_tokens, 20);
  EXPECT_EQ(cache.counters().evictions, 0);
}

TEST(PrefixCache, NamesTheJunctionWhereAPromptLeavesCachedText) {
  PrefixCache cache(kRoomy);
  cache.insert(snapshot(range(0, 100)));
  cache.insert(snapshot(range(0, 10)));
  EXPECT_EQ(cache.find(joined(range(0, 40), {999})).junction, 40);
  EXPECT_EQ(cache.find(range(0, 60)).junction, 60) << "a prompt that is itself a beginning";
  EXPECT_EQ(cache.find(joined(range(0, 12), {999})).junction, 0) << "two tokens are not worth it";
  EXPECT_EQ(cache.find(range(0, 150)).junction, 0) << "nothing is shared beyond the hit";
}

TEST(PrefixCache, AgreesWithASearchThroughAListAfterAnyInsertionsAndEvictions) {
  std::mt19937 random(1);
  PrefixCache probe(kRoomy);
  probe.insert(snapshot({1, 1, 1, 1}));
  constexpr int64_t kEntries = 40;
  PrefixCache cache(kEntries * (probe.bytes() + 100));
  std::list<Tokens> model;  // most recently used first
  const auto used = [&](const Tokens& tokens) {
    model.remove(tokens);
    model.push_front(tokens);
  };
  const auto draw = [&] {
    Tokens tokens(1 + random() % 24);
    for (int32_t& t : tokens) t = static_cast<int32_t>(random() % 8 == 0);
    return tokens;
  };
  for (int i = 0; i < 20000; ++i) {
    const Tokens prompt = draw();
    Tokens hit;
    size_t shared = 0;
    for (const Tokens& known : model) {
      const auto end = std::mismatch(known.begin(), known.end(), prompt.begin(), prompt.end());
      shared = std::max<size_t>(shared, end.first - known.begin());
      if (end.first == known.end() && known.size() > hit.size()) hit = known;
    }
    const PrefixCache::Lookup found = cache.find(prompt);
    ASSERT_EQ(found.hit ? found.hit->tokens : Tokens(), hit);
    ASSERT_EQ(found.junction, shared >= hit.size() + 16 ? static_cast<int64_t>(shared) : 0);
    if (!hit.empty()) used(hit);
    const Tokens fresh = draw();
    cache.insert(snapshot(fresh));
    used(fresh);
    while (static_cast<int64_t>(model.size()) > cache.size()) model.pop_back();
    ASSERT_EQ(static_cast<int64_t>(model.size()), cache.size());
  }
  EXPECT_GT(cache.counters().evictions, 1000);
}

// The best time of 200 lookups of 4,000 tokens among so many snapshots that differ in the last.
std::chrono::duration<double> lookups(int32_t snapshots) {
  PrefixCache cache(kRoomy);
  for (int32_t i = 0; i < snapshots; ++i) {
    auto s = std::make_shared<Snapshot>();
    s->tokens = joined(range(0, 3999), {i});
    cache.insert(std::move(s));
  }
  auto best = std::chrono::steady_clock::duration::max();
  for (int repetition = 0; repetition < 5; ++repetition) {
    const auto start = std::chrono::steady_clock::now();
    for (int32_t i = 0; i < 200; ++i) {
      EXPECT_EQ(hit_length(cache, joined(range(0, 3999), {i % snapshots, 1})), 4000);
    }
    best = std::min(best, std::chrono::steady_clock::now() - start);
  }
  return best;
}

// A search through the list would take 100 times as long among 100 times as many.
TEST(PrefixCache, FindsAmongThousandsOfLongPrefixesAboutAsFastAsAmongAFew) {
  EXPECT_LT(lookups(5000), 10 * lookups(50));
}

}  // namespace
}  // namespace gsa
