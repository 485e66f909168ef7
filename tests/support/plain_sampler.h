#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kernels/sampling.h"

namespace gsa::test {

// The drawing of a token written once more from the order that SamplingParams states, one plain
// pass over the vocabulary for each rule. Penalties are float32 arithmetic, as logits are;
// probabilities are doubles.
class PlainSampler {
 public:
  PlainSampler(std::span<const float> logits, const SampleRow& row)
      : logits_(logits.begin(), logits.end()), row_(row), p_(*row.params) {}

  int32_t draw() {
    adjust();
    best_ =
        static_cast<int32_t>(std::max_element(logits_.begin(), logits_.end()) - logits_.begin());
    if (p_.temperature == 0 || std::isinf(logits_[best_])) return best_;
    for (int32_t i = 0; i < static_cast<int32_t>(logits_.size()); ++i) kept_.push_back(i);
    if (p_.top_k > 0) keep_best(p_.top_k);
    if (p_.typical_p < 1) keep_typical();
    if (p_.top_p < 1) keep_share(p_.top_p, by([this](int32_t t) { return -double{logits_[t]}; }));
    if (p_.min_p > 0) keep_likely();
    return pick();
  }

 private:
  using Order = std::vector<std::pair<double, int32_t>>;

  void adjust() {
    const auto known = [&](int32_t t) {
      return t >= 0 && t < static_cast<int32_t>(logits_.size());
    };
    for (const LogitBias& bias : p_.logit_bias) {
      if (known(bias.token)) logits_[bias.token] += bias.bias;
    }
    for (const TokenCount& count : row_.counts) {
      float& logit = logits_[count.token];
      const float penalty = static_cast<float>(p_.repetition_penalty);
      if (count.in_context > 0) logit = logit > 0 ? logit / penalty : logit * penalty;
      if (count.in_output > 0) {
        logit -= static_cast<float>(p_.presence_penalty + p_.frequency_penalty * count.in_output);
      }
    }
    for (int32_t token : row_.banned) {
      if (known(token)) logits_[token] = -std::numeric_limits<float>::infinity();
    }
  }

  double probability(int32_t token) const {
    return std::exp((double{logits_[token]} - logits_[best_]) / p_.temperature);
  }
  double mass() const {
    double sum = 0;
    for (int32_t token : kept_) sum += probability(token);
    return sum;
  }

  // What is kept, sorted by a key and then by token.
  template <typename Key>
  Order by(const Key& key) const {
    Order order;
    for (int32_t token : kept_) order.emplace_back(key(token), token);
    std::sort(order.begin(), order.end());
    return order;
  }
  void keep_first(const Order& order, size_t count) {
    std::set<int32_t> first;
    for (size_t i = 0; i < std::min(count, order.size()); ++i) first.insert(order[i].second);
    kept_.assign(first.begin(), first.end());
  }

  void keep_best(int32_t count) {
    keep_first(by([this](int32_t t) { return -double{logits_[t]}; }), count);
  }
  // The fewest of the first ones that hold this share of what is kept.
  void keep_share(double share, const Order& order) {
    const double wanted = share * mass();
    double sum = 0;
    size_t count = 0;
    while (count < order.size() && (count == 0 || sum < wanted)) {
      sum += probability(order[count++].second);
    }
    keep_first(order, count);
  }
  void keep_typical() {
    const double total = mass();
    double entropy = 0;
    for (int32_t token : kept_) {
      const double p = probability(token) / total;
      if (p > 0) entropy -= p * std::log(p);
    }
    // Of equally typical tokens the likelier goes first, which the key alone cannot say.
    Order order = by([&](int32_t token) {
      const double p = probability(token) / total;
      return p > 0 ? std::abs(-std::log(p) - entropy) : HUGE_VAL;
    });
    std::sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
      if (a.first != b.first) return a.first < b.first;
      const float la = logits_[a.second], lb = logits_[b.second];
      return la != lb ? la > lb : a.second < b.second;
    });
    keep_share(p_.typical_p, order);
  }
  void keep_likely() {
    double most = 0;
    for (int32_t token : kept_) most = std::max(most, probability(token));
    std::erase_if(kept_, [&](int32_t token) { return probability(token) < p_.min_p * most; });
  }

  // In the order of the tokens, the first with which the probabilities exceed the random number.
  int32_t pick() const {
    double left = uniform(p_.seed, row_.index) * mass();
    int32_t last = kept_.front();
    for (int32_t token : kept_) {
      const double p = probability(token);
      if (p <= 0) continue;
      last = token;
      if ((left -= p) < 0) break;
    }
    return last;
  }

  std::vector<float> logits_;
  const SampleRow& row_;
  const SamplingParams& p_;
  int32_t best_ = 0;
  std::vector<int32_t> kept_;  // ascending
};

}  // namespace gsa::test
