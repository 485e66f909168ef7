#include "kernels/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace gsa::cpu {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Candidate {
  int32_t token;
  double logit;
  double p;  // probability, up to a common factor
};

bool likelier(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

bool by_token(const Candidate& a, const Candidate& b) { return a.token < b.token; }

double mass(const std::vector<Candidate>& candidates) {
  double sum = 0;
  for (const Candidate& c : candidates) sum += c.p;
  return sum;
}

// Cuts a sorted list behind the first candidates that hold `share` of the mass.
void keep_share(double share, std::vector<Candidate>& candidates) {
  const double wanted = share * mass(candidates);
  double sum = 0;
  size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || sum < wanted)) sum += candidates[kept++].p;
  candidates.resize(kept);
}

// Bias, bans and penalties.
void adjust(const SampleRow& row, std::vector<float>& logits) {
  const int64_t n = static_cast<int64_t>(logits.size());
  const SamplingParams& p = *row.params;
  for (const LogitBias& b : p.logit_bias) {
    if (b.token >= 0 && b.token < n) logits[b.token] += b.bias;
  }
  for (const TokenCount& c : row.counts) {
    float& logit = logits[c.token];
    if (c.in_context > 0) {
      const float penalty = static_cast<float>(p.repetition_penalty);
      logit = logit > 0 ? logit / penalty : logit * penalty;
    }
    if (c.in_output > 0) {
      logit -= static_cast<float>(p.presence_penalty + p.frequency_penalty * c.in_output);
    }
  }
  for (int32_t token : row.banned) {
    if (token >= 0 && token < n) logits[token] = kNever;
  }
}

// Keeps the tokens whose surprise is closest to the entropy (Meister et al., "Locally Typical
// Sampling", TACL 2023).
void keep_typical(double share, std::vector<Candidate>& candidates) {
  const double total = mass(candidates);
  double entropy = 0;
  for (const Candidate& c : candidates) {
    if (c.p > 0) entropy -= c.p / total * std::log(c.p / total);
  }
  const auto distance = [&](const Candidate& c) {
    return c.p > 0 ? std::abs(-std::log(c.p / total) - entropy)
                   : std::numeric_limits<double>::infinity();
  };
  std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    const double da = distance(a), db = distance(b);
    return da != db ? da < db : likelier(a, b);
  });
  keep_share(share, candidates);
}

int32_t draw(const float* logits, int64_t n, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  const float max = *std::max_element(logits, logits + n);
  if (p.temperature == 0 || !std::isfinite(max)) {
    return static_cast<int32_t>(std::max_element(logits, logits + n) - logits);
  }
  std::vector<Candidate> candidates(n);
  for (int64_t i = 0; i < n; ++i) candidates[i] = {static_cast<int32_t>(i), logits[i], 0};
  if (p.top_k > 0 && p.top_k < n) {
    std::nth_element(candidates.begin(), candidates.begin() + p.top_k - 1, candidates.end(),
                     likelier);
    candidates.resize(p.top_k);
    std::sort(candidates.begin(), candidates.end(), by_token);
  }
  for (Candidate& c : candidates) c.p = std::exp((c.logit - max) / p.temperature);
  if (p.typical_p < 1) keep_typical(p.typical_p, candidates);
  if (p.top_p < 1) {
    std::sort(candidates.begin(), candidates.end(), likelier);
    keep_share(p.top_p, candidates);
  }
  if (p.min_p > 0) {
    double best = 0;
    for (const Candidate& c : candidates) best = std::max(best, c.p);
    std::erase_if(candidates, [&](const Candidate& c) { return c.p < p.min_p * best; });
  }
  if (p.typical_p < 1 || p.top_p < 1) std::sort(candidates.begin(), candidates.end(), by_token);
  double left = uniform(p.seed, row.index) * mass(candidates);
  int32_t last = candidates.front().token;
  for (const Candidate& c : candidates) {
    if (c.p <= 0) continue;
    last = c.token;
    left -= c.p;
    if (left < 0) break;
  }
  return last;
}

}  // namespace

std::vector<TokenCount> count_once_more(std::span<const TokenCount> counts, int32_t token) {
  std::vector<TokenCount> all(counts.begin(), counts.end());
  auto at = std::find_if(all.begin(), all.end(),
                         [token](const TokenCount& count) { return count.token == token; });
  if (at == all.end()) at = all.insert(at, {.token = token});
  ++at->in_context;
  ++at->in_output;
  return all;
}

SampleResult sample_row(const float* logits, int64_t n, const SampleRow& row) {
  const SamplingParams& p = *row.params;
  int32_t token;
  if (row.counts.empty() && row.banned.empty() && p.logit_bias.empty()) {
    token = draw(logits, n, row);
  } else {
    std::vector<float> adjusted(logits, logits + n);
    adjust(row, adjusted);
    token = draw(adjusted.data(), n, row);
  }
  if (p.logprobs > 0) return score_row(logits, n, token, p.logprobs);
  SampleResult result;
  result.token = token;
  return result;
}

SampleResult score_row(const float* logits, int64_t n, int32_t token, int32_t top) {
  const double max = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += std::exp(logits[i] - max);
  const double log_sum = max + std::log(sum);
  SampleResult result;
  result.token = token;
  result.logprob = static_cast<float>(logits[token] - log_sum);
  if (top > 0) {
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    const auto end = order.begin() + std::min<int64_t>(top, n);
    std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    for (auto it = order.begin(); it != end; ++it) {
      result.top.push_back({*it, static_cast<float>(logits[*it] - log_sum)});
    }
  }
  return result;
}

}  // namespace gsa::cpu
