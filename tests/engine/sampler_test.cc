#include "engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "kernels/backend.h"

namespace gsa {
namespace {

constexpr int kTokens = 40;
constexpr int kDraws = 40000;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

using Logits = std::vector<float>;
using Distribution = std::vector<double>;

Logits random_logits(uint32_t seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 2);
  Logits logits(kTokens);
  for (float& l : logits) l = normal(random);
  return logits;
}

// Draws with the indices 0, 1, ... of one row; returns how often each token came.
std::vector<int> draw(const Logits& logits, SampleRow row, int draws = kDraws) {
  const auto backend = make_cpu_backend(2);
  std::vector<int> counts(logits.size());
  constexpr int kRows = 1000;
  Logits rows;
  for (int i = 0; i < kRows; ++i) rows.insert(rows.end(), logits.begin(), logits.end());
  const TensorView view(rows.data(), DType::kF32, {kRows, static_cast<int64_t>(logits.size())});
  std::vector<SampleResult> results(kRows);
  for (int done = 0; done < draws; done += kRows) {
    std::vector<SampleRow> list(kRows, row);
    for (int i = 0; i < kRows; ++i) list[i].index = static_cast<uint64_t>(done + i);
    backend->sample(view, list, results);
    for (const SampleResult& r : results) ++counts[r.token];
  }
  return counts;
}

int32_t draw_one(const Logits& logits, const SampleRow& row) {
  const auto backend = make_cpu_backend(1);
  Logits copy = logits;
  SampleResult result;
  backend->sample(TensorView(copy.data(), DType::kF32, {1, static_cast<int64_t>(copy.size())}),
                  {&row, 1}, {&result, 1});
  return result.token;
}

double chi_square(const std::vector<int>& counts, const Distribution& p, int& freedom) {
  const double draws = std::accumulate(counts.begin(), counts.end(), 0.0);
  double chi = 0, rest_found = 0, rest_expected = 0;
  freedom = -1;
  for (size_t t = 0; t < p.size(); ++t) {
    const double expected = p[t] * draws;
    if (expected < 5) {  // too few for a bin of its own
      rest_found += counts[t];
      rest_expected += expected;
      continue;
    }
    chi += (counts[t] - expected) * (counts[t] - expected) / expected;
    ++freedom;
  }
  if (rest_expected >= 5) {
    chi += (rest_found - rest_expected) * (rest_found - rest_expected) / rest_expected;
    ++freedom;
  }
  return chi;
}

// What a chi-square of so many degrees of freedom exceeds once in a million times (Wilson and
// Hilferty's approximation).
double bound(int freedom) {
  const double v = 2.0 / (9 * freedom);
  return freedom * std::pow(1 - v + 4.753 * std::sqrt(v), 3);
}

bool fits(const std::vector<int>& counts, const Distribution& p) {
  for (size_t t = 0; t < p.size(); ++t) {
    if (p[t] == 0 && counts[t] > 0) return false;
  }
  int freedom = 0;
  const double chi = chi_square(counts, p, freedom);
  return freedom == 0 || chi < bound(freedom);
}

Distribution softmax(const Logits& logits, double temperature = 1) {
  const double max = *std::max_element(logits.begin(), logits.end());
  Distribution p;
  for (float l : logits) p.push_back(std::exp((l - max) / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= sum;
  return p;
}

// Zeroes all but the first tokens in the order of `rank` whose sum reaches `share`.
void keep_mass(double share, const std::function<double(double)>& rank, Distribution& p) {
  std::vector<int> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return rank(p[a]) < rank(p[b]); });
  double sum = 0;
  Distribution kept(p.size(), 0);
  for (int t : order) {
    if (sum >= share) break;
    sum += p[t];
    kept[t] = p[t];
  }
  for (double& v : kept) v /= sum;
  p = kept;
}

void keep_top_p(double share, Distribution& p) {
  keep_mass(
      share, [](double v) { return -v; }, p);
}

void keep_typical(double share, Distribution& p) {
  double entropy = 0;
  for (double v : p) entropy -= v > 0 ? v * std::log(v) : 0;
  keep_mass(
      share, [&](double v) { return v > 0 ? std::abs(-std::log(v) - entropy) : 1e300; }, p);
}

void keep_top_k(int k, Distribution& p) {
  Distribution sorted = p;
  std::sort(sorted.rbegin(), sorted.rend());
  for (double& v : p) v = v >= sorted[k - 1] ? v : 0;
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= sum;
}

void keep_min_p(double share, Distribution& p) {
  const double best = *std::max_element(p.begin(), p.end());
  for (double& v : p) v = v >= share * best ? v : 0;
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= sum;
}

TEST(Sample, FollowsTheSoftmaxAtEveryTemperature) {
  const Logits logits = random_logits();
  for (double temperature : {0.3, 1.0, 1.7, 30.0}) {
    const SamplingParams params{.temperature = temperature, .seed = 5};
    const std::vector<int> counts = draw(logits, {.params = &params});
    EXPECT_TRUE(fits(counts, softmax(logits, temperature))) << temperature;
    EXPECT_FALSE(fits(counts, softmax(logits, temperature * 1.1)) && temperature < 3)
        << "the bound must see a temperature that is wrong by a tenth";
  }
}

TEST(Sample, FollowsEachFilterAlone) {
  const Logits logits = random_logits(2);
  const auto check = [&](const SamplingParams& params, const auto& filter) {
    Distribution p = softmax(logits, params.temperature);
    filter(p);
    EXPECT_TRUE(fits(draw(logits, {.params = &params}), p));
    EXPECT_FALSE(fits(draw(logits, {.params = &params}), softmax(logits, params.temperature)));
  };
  check({.top_k = 7}, [](Distribution& p) { keep_top_k(7, p); });
  check({.top_k = 1}, [](Distribution& p) { keep_top_k(1, p); });
  check({.top_p = 0.8}, [](Distribution& p) { keep_top_p(0.8, p); });
  check({.top_p = 1e-9}, [](Distribution& p) { keep_top_k(1, p); });
  check({.min_p = 0.1}, [](Distribution& p) { keep_min_p(0.1, p); });
  check({.typical_p = 0.6}, [](Distribution& p) { keep_typical(0.6, p); });
}

TEST(Sample, LeavesTheDistributionAloneWhereAFilterIsOff) {
  const Logits logits = random_logits(3);
  const SamplingParams params{.top_k = kTokens, .top_p = 1, .min_p = 0, .typical_p = 1};
  EXPECT_TRUE(fits(draw(logits, {.params = &params}), softmax(logits)));
}

// Chosen so that every other order keeps other tokens.
TEST(Sample, AppliesTemperatureTopKTypicalTopPAndMinPInThisOrder) {
  Logits logits(kTokens);
  for (int i = 0; i < kTokens; ++i) logits[i] = static_cast<float>(3 * std::sin(1.7 * i));
  const SamplingParams params{
      .temperature = 1.4, .top_k = 18, .top_p = 0.82, .min_p = 0.58, .typical_p = 0.69};
  using Step = std::function<void(Distribution&)>;
  const std::vector<Step> steps = {
      [](Distribution& p) { keep_top_k(18, p); }, [](Distribution& p) { keep_typical(0.69, p); },
      [](Distribution& p) { keep_top_p(0.82, p); }, [](Distribution& p) { keep_min_p(0.58, p); }};
  const std::vector<int> counts = draw(logits, {.params = &params});
  Distribution p = softmax(logits, 1.4);
  for (const Step& step : steps) step(p);
  EXPECT_TRUE(fits(counts, p));
  for (size_t i = 0; i + 1 < steps.size(); ++i) {
    std::vector<Step> swapped = steps;
    std::swap(swapped[i], swapped[i + 1]);
    Distribution other = softmax(logits, 1.4);
    for (const Step& step : swapped) step(other);
    EXPECT_FALSE(fits(counts, other)) << "steps " << i << " and " << i + 1 << " swapped";
  }
  Distribution late = softmax(logits, 1);  // temperature behind the filters
  for (const Step& step : steps) step(late);
  EXPECT_FALSE(fits(counts, late));
}

TEST(Sample, AddsTheLogitBiasBeforeThePenalties) {
  const Logits logits = random_logits(5);
  SamplingParams params{.repetition_penalty = 1.8, .presence_penalty = 0.4};
  params.frequency_penalty = 0.3;
  params.logit_bias = {{.token = 3, .bias = 2}, {.token = 9, .bias = -kInfinity}};
  const std::vector<TokenCount> counts = {{.token = 3, .in_context = 2, .in_output = 1},
                                          {.token = 4, .in_context = 1, .in_output = 0},
                                          {.token = 5, .in_context = 0, .in_output = 3}};
  Logits expected = logits;
  const auto repeated = [](float l) { return l > 0 ? l / 1.8f : l * 1.8f; };
  expected[3] = repeated(logits[3] + 2) - 0.4f - 0.3f;
  expected[4] = repeated(logits[4]);
  expected[5] = logits[5] - 0.4f - 3 * 0.3f;
  Distribution p = softmax(expected);
  double sum = 1 - p[9];
  p[9] = 0;
  for (double& v : p) v /= sum;
  EXPECT_TRUE(fits(draw(logits, {.params = &params, .counts = counts}), p));
}

TEST(Sample, TakesTheLikeliestTokenAtTemperatureZeroAndTheFirstOfEqualOnes) {
  Logits logits = random_logits(6);
  logits[11] = logits[23] = 50;
  const SamplingParams params{.temperature = 0};
  const SampleRow row{.params = &params};
  EXPECT_EQ(draw_one(logits, row), 11);
  const std::vector<int32_t> banned = {11};
  EXPECT_EQ(draw_one(logits, {.params = &params, .banned = banned}), 23);
}

TEST(Sample, NeverDrawsWhatIsBanned) {
  const Logits logits = random_logits(7);
  const SamplingParams params{};
  const std::vector<int32_t> banned = {2, 3};
  const std::vector<int> counts = draw(logits, {.params = &params, .banned = banned});
  EXPECT_EQ(counts[2] + counts[3], 0);
  SamplingParams forced{};
  forced.logit_bias = {{.token = 2, .bias = kInfinity}};
  EXPECT_EQ(draw_one(logits, {.params = &forced}), 2);
}

TEST(Sample, DependsOnSeedAndIndexAloneAndNotOnTheRowsBeside) {
  const Logits logits = random_logits(8);
  const SamplingParams params{.seed = 77}, other{.seed = 78};
  std::vector<int32_t> alone, beside;
  int different = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    alone.push_back(draw_one(logits, {.params = &params, .index = i}));
    different += alone.back() != draw_one(logits, {.params = &other, .index = i});
  }
  const auto backend = make_cpu_backend(2);
  Logits rows;
  for (int i = 0; i < 200; ++i) rows.insert(rows.end(), logits.begin(), logits.end());
  std::vector<SampleRow> list;
  for (uint64_t i = 200; i-- > 0;) list.push_back({.params = &params, .index = i});
  std::vector<SampleResult> results(200);
  backend->sample(TensorView(rows.data(), DType::kF32, {200, kTokens}), list, results);
  for (int i = 200; i-- > 0;) beside.push_back(results[i].token);
  EXPECT_EQ(alone, beside);
  EXPECT_GT(different, 50);
}

TEST(Sample, ReportsTheModelsOwnLogProbabilities) {
  const Logits logits = random_logits(9);
  SamplingParams params{.temperature = 0.5, .top_k = 3, .logprobs = 5};
  params.logit_bias = {{.token = 8, .bias = kInfinity}};
  Logits copy = logits;
  const auto backend = make_cpu_backend(1);
  const SampleRow row{.params = &params};
  SampleResult result;
  backend->sample(TensorView(copy.data(), DType::kF32, {1, kTokens}), {&row, 1}, {&result, 1});
  const Distribution p = softmax(logits);  // neither bias nor temperature
  EXPECT_EQ(result.token, 8);
  EXPECT_NEAR(result.logprob, std::log(p[8]), 1e-5);
  Distribution sorted = p;
  std::sort(sorted.rbegin(), sorted.rend());
  ASSERT_EQ(result.top.size(), 5u);
  for (int i = 0; i < 5; ++i) {
    EXPECT_NEAR(result.top[i].logprob, std::log(sorted[i]), 1e-5);
    EXPECT_NEAR(result.top[i].logprob, std::log(p[result.top[i].token]), 1e-5);
  }
}

// --- Sampler: what the penalties count, and which tokens are banned ---

using Counts = std::map<int32_t, std::pair<int32_t, int32_t>>;  // in context, in output

Counts counts_of(const Sampler& sampler) {
  Counts counts;
  for (const TokenCount& c : sampler.row().counts) {
    if (c.in_context != 0 || c.in_output != 0) counts[c.token] = {c.in_context, c.in_output};
  }
  return counts;
}

TEST(Sampler, CountsPromptAndOutputForRepetitionAndOutputAloneForPresence) {
  const SamplingParams params{.repetition_penalty = 1.1};
  const std::vector<int32_t> prompt = {5, 6, 5};
  Sampler sampler(params, prompt, -1, {}, 0);
  EXPECT_EQ(counts_of(sampler), (Counts{{5, {2, 0}}, {6, {1, 0}}}));
  sampler.accept(6);
  sampler.accept(7);
  EXPECT_EQ(counts_of(sampler), (Counts{{5, {2, 0}}, {6, {2, 1}}, {7, {1, 1}}}));
}

TEST(Sampler, LooksBackOnlyOverTheWindowForRepetition) {
  const SamplingParams params{.repetition_penalty = 1.1, .frequency_penalty = 1};
  const std::vector<int32_t> prompt = {1, 2, 3};
  Sampler sampler(params, prompt, 2, {}, 0);
  EXPECT_EQ(counts_of(sampler), (Counts{{2, {1, 0}}, {3, {1, 0}}}));
  for (int32_t token : {4, 4, 5}) sampler.accept(token);
  EXPECT_EQ(counts_of(sampler), (Counts{{4, {1, 2}}, {5, {1, 1}}}))
      << "the output stays counted for the frequency penalty";
  Sampler none(params, prompt, 0, {}, 0);
  none.accept(9);
  EXPECT_EQ(counts_of(none), (Counts{{9, {0, 1}}}));
}

TEST(Sampler, CountsNothingWithoutPenalties) {
  const SamplingParams params{};
  const std::vector<int32_t> prompt = {1, 2, 3};
  Sampler sampler(params, prompt, -1, {}, 0);
  sampler.accept(4);
  EXPECT_TRUE(sampler.row().counts.empty());
}

TEST(Sampler, BansTokensUntilTheMinimumIsDrawnAndCountsTheIndexUp) {
  const SamplingParams params{};
  Sampler sampler(params, {}, -1, {2, 9}, 2);
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sampler.row().index, i);
    EXPECT_EQ(sampler.row().banned.size(), i < 2 ? 2u : 0u);
    sampler.accept(1);
  }
}

TEST(Sampler, DrawsAheadOfATokenWhatItDrawsOnceTheTokenIsKnown) {
  const SamplingParams params{.temperature = 0.7,
                              .repetition_penalty = 1.8,
                              .presence_penalty = 0.3,
                              .frequency_penalty = 0.2};
  const std::vector<int32_t> prompt = {1, 2, 3, 2};
  constexpr int kSteps = 200;
  std::vector<Logits> logits;  // of ever the same few tokens
  for (uint32_t i = 0; i < kSteps; ++i) logits.push_back(random_logits(i % 2));
  const auto view = [&](int i) { return TensorView(logits[i].data(), DType::kF32, {1, kTokens}); };
  const auto backend = make_cpu_backend(1);
  for (int64_t window : {-1, 0, 1, 2, 7}) {
    SCOPED_TRACE(window);
    Sampler in_turn(params, prompt, window, {4, 9}, 5), ahead(params, prompt, window, {4, 9}, 5);
    SampleRow row = ahead.row();
    backend->queue_sample(view(0), {&row, 1});
    for (int i = 0; i + 1 < kSteps; ++i) {
      row = ahead.row_after(0);
      backend->queue_sample(view(i + 1), {&row, 1});
      SampleResult result;
      backend->collect_sample({&result, 1});
      ahead.accept(result.token);
      ASSERT_EQ(result.token, draw_one(logits[i], in_turn.row())) << "step " << i;
      in_turn.accept(result.token);
      ASSERT_EQ(counts_of(ahead), counts_of(in_turn));
    }
    backend->drop_samples();
  }
}

}  // namespace
}  // namespace gsa
