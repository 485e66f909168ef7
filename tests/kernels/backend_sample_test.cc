// Drawing and scoring tokens: the same on every device.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/device_data.h"
#include "tests/support/devices.h"
#include "tests/support/error_of.h"
#include "tests/support/plain_sampler.h"

namespace gsa {
namespace {

using test::DeviceArray;
using test::PlainSampler;
using test::Random;

using BackendSample = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendSample, testing::ValuesIn(test::kDevices),
                         test::device_name);

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Size {
  int64_t N, rows;
};
const std::vector<Size> kSizes = {{97, 3000}, {4096, 1000}, {32000, 210}};
const std::vector<int64_t> kBatches = {1, 5, 64};

// Logits of a model: most far below the best; in some rows many are equal.
std::vector<float> random_logits(Random& random, int64_t N) {
  std::vector<float> logits = random.normal(N, 3);
  if (random.chance(0.2)) {
    for (float& logit : logits) logit = std::round(logit * 2) / 2;
  }
  return logits;
}

// Everything that decides a row's token, with random rules of which most rows have several.
struct Row {
  SamplingParams params;
  std::vector<TokenCount> counts;
  std::vector<int32_t> banned;
  uint64_t index = 0;

  SampleRow row() const { return {&params, index, counts, banned}; }
};

Row random_row(Random& random, int64_t N) {
  Row row;
  SamplingParams& p = row.params;
  p.temperature = random.chance(0.15) ? 0 : random.chance(0.1) ? 0.02 : 0.3 + 1.5 * random.real();
  if (random.chance(0.4))
    p.top_k = static_cast<int32_t>(1 + random.below(random.chance(0.5) ? 50 : 2 * N));
  if (random.chance(0.4)) p.top_p = 0.05 + 0.95 * random.real();
  if (random.chance(0.3)) p.min_p = 0.3 * random.real();
  if (random.chance(0.25)) p.typical_p = 0.1 + 0.9 * random.real();
  p.seed = static_cast<uint64_t>(random.real() * 0x1p63) * 2 + random.below(2);
  row.index = random.chance(0.1) ? uint64_t{1} << 33 : random.below(5000);
  if (random.chance(0.3)) {
    // A token stands once, as in a request.
    for (int32_t token = static_cast<int32_t>(random.below(20)); token < N;
         token += static_cast<int32_t>(1 + random.below(N / 3))) {
      p.logit_bias.push_back(
          {token, random.chance(0.3) ? -kInfinity : static_cast<float>(4 * random.real())});
    }
    p.logit_bias.push_back({static_cast<int32_t>(N), 100.0f});  // no such token: no effect
  }
  if (random.chance(0.4)) {
    p.repetition_penalty = 0.8 + random.real();
    p.presence_penalty = 2 * random.real() - 1;
    p.frequency_penalty = random.real();
    for (int64_t token = random.below(3); token < N; token += 1 + random.below(N / 10)) {
      const int32_t in_output = static_cast<int32_t>(random.below(4));
      row.counts.push_back({static_cast<int32_t>(token),
                            in_output + static_cast<int32_t>(random.below(2)), in_output});
    }
  }
  if (random.chance(0.2)) row.banned = {2, static_cast<int32_t>(random.below(N)), -1};
  return row;
}

// A batch of rows, drawn on the device.
struct SampleBatch {
  int64_t N;
  std::vector<float> logits;
  std::vector<Row> rows;

  SampleBatch(Random& random, int64_t N, int64_t count) : N(N) {
    for (int64_t r = 0; r < count; ++r) {
      const std::vector<float> row = random_logits(random, N);
      logits.insert(logits.end(), row.begin(), row.end());
      rows.push_back(random_row(random, N));
    }
  }

  std::span<const float> logits_of(size_t row) const {
    return std::span(logits).subspan(row * N, N);
  }

  std::vector<SampleResult> draw(Backend& backend) const {
    const int64_t count = static_cast<int64_t>(rows.size());
    const DeviceArray device(backend, count, N, logits);
    std::vector<SampleRow> sample_rows;
    for (const Row& row : rows) sample_rows.push_back(row.row());
    std::vector<SampleResult> results(count);
    backend.sample(device.view(), sample_rows, results);
    return results;
  }
};

std::string words(const SamplingParams& p) {
  return fmt::format("temperature {} top_k {} top_p {} min_p {} typical_p {} seed {}",
                     p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p, p.seed);
}

TEST_P(BackendSample, DrawsTheTokenThatTheRulesDefine) {
  const auto backend = this->backend();
  Random random(11);
  for (const Size& size : kSizes) {
    int64_t batch = 0, greedy = 0;
    for (int64_t done = 0; done < size.rows; ++batch) {
      const SampleBatch rows(random, size.N, kBatches[batch % kBatches.size()]);
      const std::vector<SampleResult> results = rows.draw(*backend);
      for (size_t r = 0; r < results.size(); ++r) {
        const SampleRow row = rows.rows[r].row();
        ASSERT_EQ(results[r].token, PlainSampler(rows.logits_of(r), row).draw())
            << "N " << size.N << ", batch " << batch << ", row " << r << ": " << words(*row.params);
        const auto logits = rows.logits_of(r);
        greedy += logits[results[r].token] == *std::max_element(logits.begin(), logits.end());
      }
      done += static_cast<int64_t>(results.size());
    }
    EXPECT_LT(greedy, size.rows * 3 / 4) << "hardly anything was random";
  }
}

TEST_P(BackendSample, DrawsTheSameAloneAndInABatch) {
  const auto backend = this->backend();
  Random random(12);
  SampleBatch batch(random, 4096, 64);
  const std::vector<SampleResult> together = batch.draw(*backend);
  for (size_t r = 0; r < together.size(); r += 7) {
    SampleBatch alone(random, batch.N, 0);
    alone.logits.assign(batch.logits_of(r).begin(), batch.logits_of(r).end());
    alone.rows = {batch.rows[r]};
    EXPECT_EQ(alone.draw(*backend)[0].token, together[r].token) << "row " << r;
  }
}

TEST_P(BackendSample, TakesTheFirstOfEqualLogitsAndInfinityAtItsWord) {
  const auto backend = this->backend();
  Random random(13);
  for (int64_t N : {97, 32000}) {
    SampleBatch batch(random, N, 5);
    for (Row& row : batch.rows) row = Row();
    std::fill(batch.logits.begin(), batch.logits.end(), -2.0f);
    batch.rows[0].params.temperature = 0;
    batch.logits[0 * N + 90] = batch.logits[0 * N + 41] = 1;
    batch.rows[1].params.top_k = 1;
    batch.logits[1 * N + 90] = batch.logits[1 * N + 42] = 1;
    batch.logits[2 * N + 43] = kInfinity;  // whatever the temperature
    for (int64_t i = 0; i < N; ++i) batch.logits[3 * N + i] = i == 44 ? 0 : -kInfinity;
    batch.logits[4 * N + 45] = 200;  // all others underflow
    const std::vector<SampleResult> results = batch.draw(*backend);
    for (size_t r = 0; r < results.size(); ++r) {
      EXPECT_EQ(results[r].token, static_cast<int32_t>(41 + r));
    }
  }
}

// log softmax in double precision, and the order of the likeliest.
void expect_scores(const SampleResult& found, std::span<const float> logits, int32_t token,
                   int32_t top) {
  double sum = 0;
  const double max = *std::max_element(logits.begin(), logits.end());
  for (float logit : logits) sum += std::exp(logit - max);
  const auto logprob = [&](int32_t t) { return logits[t] - max - std::log(sum); };
  EXPECT_EQ(found.token, token);
  EXPECT_NEAR(found.logprob, logprob(token), 1e-5);
  std::vector<std::pair<float, int32_t>> order;
  for (size_t i = 0; i < logits.size(); ++i) order.emplace_back(-logits[i], i);
  std::sort(order.begin(), order.end());
  ASSERT_EQ(found.top.size(), std::min<size_t>(top, logits.size()));
  for (size_t i = 0; i < found.top.size(); ++i) {
    EXPECT_EQ(found.top[i].token, order[i].second) << "place " << i;
    EXPECT_NEAR(found.top[i].logprob, logprob(order[i].second), 1e-5);
  }
}

TEST_P(BackendSample, ScoresTokensAndTheLikeliest) {
  const auto backend = this->backend();
  Random random(14);
  for (int64_t N : {97, 4096, 32000}) {
    for (int64_t batch : kBatches) {
      for (int32_t top : {0, 1, 20, 120}) {
        if (N == 32000 && (top == 1 || batch == 64)) continue;
        const SampleBatch rows(random, N, batch);
        const DeviceArray logits(*backend, batch, N, rows.logits);
        std::vector<int32_t> targets(batch);
        for (int32_t& target : targets) target = static_cast<int32_t>(random.below(N));
        std::vector<SampleResult> results(batch);
        backend->score(logits.view(), targets, top, results);
        for (int64_t r = 0; r < batch; ++r) {
          SCOPED_TRACE(testing::Message() << "N " << N << ", top " << top << ", row " << r);
          expect_scores(results[r], rows.logits_of(r), targets[r], top);
        }
      }
    }
  }
}

TEST_P(BackendSample, ReportsLogprobsOfTheRawLogitsWhereAskedFor) {
  const auto backend = this->backend();
  Random random(15);
  for (int64_t N : {97, 4096}) {
    SampleBatch batch(random, N, 12);
    for (size_t r = 0; r < batch.rows.size(); ++r) {
      batch.rows[r].params.logprobs = static_cast<int32_t>(r % 4) * 3;
    }
    const std::vector<SampleResult> results = batch.draw(*backend);
    for (size_t r = 0; r < results.size(); ++r) {
      SCOPED_TRACE(r);
      if (batch.rows[r].params.logprobs == 0) {
        EXPECT_TRUE(results[r].top.empty());
      } else {
        expect_scores(results[r], batch.logits_of(r), results[r].token,
                      batch.rows[r].params.logprobs);
      }
    }
  }
}

TEST_P(BackendSample, RefusesLogitsThatAreNotNumbers) {
  const auto backend = this->backend();
  Random random(16);
  for (int64_t N : {97, 32000}) {
    SampleBatch batch(random, N, 5);
    batch.logits[3 * N + N - 1] = std::nanf("");
    EXPECT_THAT(test::error_of([&] { batch.draw(*backend); }), testing::HasSubstr("NaN"));
    const DeviceArray logits(*backend, 5, N, batch.logits);
    std::vector<SampleResult> results(5);
    const std::vector<int32_t> targets(5, 1);
    EXPECT_THAT(test::error_of([&] { backend->score(logits.view(), targets, 0, results); }),
                testing::HasSubstr("NaN"));
    // The next call is none the worse for it.
    batch.logits[3 * N + N - 1] = 0;
    EXPECT_EQ(batch.draw(*backend).size(), 5u);
  }
}

// The rows again, with one more of a token that the list may not have yet.
void count_token(Row& row, int32_t token) {
  for (TokenCount& count : row.counts) {
    if (count.token != token) continue;
    ++count.in_context;
    ++count.in_output;
    return;
  }
  row.counts.push_back({token, 1, 1});
}

TEST_P(BackendSample, CountsTokensThatTheDrawBeforeGaveAndNobodyHasCollected) {
  const auto backend = this->backend();
  Random random(17);
  for (int64_t N : {97, 4096}) {
    constexpr int kRows = 6;
    int changed = 0;
    for (int round = 0; round < 12; ++round) {
      const SampleBatch first(random, N, kRows);
      SampleBatch second(random, N, kRows - 1);
      std::vector<int32_t> pending;
      for (int r = 0; r < kRows - 1; ++r) {
        pending.push_back(static_cast<int32_t>(random.below(kRows + 1)) - 1);
        if (pending[r] < 0) continue;
        // The same would be drawn again, if it did not count.
        second.rows[r] = first.rows[pending[r]];
        std::ranges::copy(first.logits_of(pending[r]), second.logits.begin() + r * N);
      }
      const DeviceArray first_logits(*backend, kRows, N, first.logits);
      const DeviceArray second_logits(*backend, kRows - 1, N, second.logits);
      std::vector<SampleRow> rows;
      for (const Row& row : first.rows) rows.push_back(row.row());
      backend->queue_sample(first_logits.view(), rows);
      rows.clear();
      for (int r = 0; r < kRows - 1; ++r) {
        second.rows[r].params.presence_penalty = 6;
        second.rows[r].params.repetition_penalty = 1.3;
        rows.push_back(second.rows[r].row());
        rows.back().pending_row = pending[r];
      }
      backend->queue_sample(second_logits.view(), rows);
      std::vector<SampleResult> before(kRows), after(kRows - 1);
      backend->collect_sample(before);
      backend->collect_sample(after);
      for (int r = 0; r < kRows; ++r) {
        ASSERT_EQ(before[r].token, PlainSampler(first.logits_of(r), first.rows[r].row()).draw());
      }
      for (int r = 0; r < kRows - 1; ++r) {
        Row& row = second.rows[r];
        const int32_t without = PlainSampler(second.logits_of(r), row.row()).draw();
        if (pending[r] >= 0) count_token(row, before[pending[r]].token);
        const int32_t expected = PlainSampler(second.logits_of(r), row.row()).draw();
        ASSERT_EQ(after[r].token, expected) << "N " << N << ", round " << round << ", row " << r;
        changed += expected != without;
      }
    }
    EXPECT_GT(changed, 10) << "N " << N << ": the pending tokens made no difference";
  }
}

TEST_P(BackendSample, CollectsDrawsInTheirOrderAndForgetsDroppedOnes) {
  const auto backend = this->backend();
  Random random(18);
  SampleBatch batch(random, 97, 3);
  const DeviceArray logits(*backend, 3, 97, batch.logits);
  batch.logits[0] = std::nanf("");
  const DeviceArray damaged(*backend, 3, 97, batch.logits);
  std::vector<SampleRow> rows;
  for (const Row& row : batch.rows) rows.push_back(row.row());
  std::vector<SampleResult> results(3);
  backend->queue_sample(damaged.view(), rows);
  backend->queue_sample(logits.view(), rows);
  EXPECT_THAT(test::error_of([&] { backend->collect_sample(results); }), testing::HasSubstr("NaN"));
  backend->collect_sample(results);
  const int32_t token = results[1].token;
  for (int times = 0; times < 3; ++times) {
    backend->queue_sample(damaged.view(), rows);
    if (times > 0) backend->queue_sample(damaged.view(), rows);
    backend->drop_samples();
    backend->sample(logits.view(), rows, results);
    EXPECT_EQ(results[1].token, token);
  }
}

}  // namespace
}  // namespace gsa
