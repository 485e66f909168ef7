#include "tools/gsa/divergence.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace gsa {
namespace {

double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - largest);
  return largest + std::log(sum);
}

}  // namespace

void Divergence::add(std::span<const float> base, std::span<const float> model) {
  const double base_sum = log_sum_exp(base), model_sum = log_sum_exp(model);
  double divergence = 0;
  for (size_t i = 0; i < base.size(); ++i) {
    const double logprob = base[i] - base_sum;
    divergence += std::exp(logprob) * (logprob - (model[i] - model_sum));
  }
  divergences_.push_back(std::max(divergence, 0.0));  // rounding may leave less than nothing
  agreed_ += std::max_element(base.begin(), base.end()) - base.begin() ==
             std::max_element(model.begin(), model.end()) - model.begin();
}

double Divergence::mean() const {
  return std::accumulate(divergences_.begin(), divergences_.end(), 0.0) /
         static_cast<double>(divergences_.size());
}

double Divergence::percentile(double percent) const {
  std::vector<double> sorted = divergences_;
  const auto rank =
      static_cast<size_t>(std::ceil(percent / 100 * static_cast<double>(sorted.size())));
  const auto at = sorted.begin() + static_cast<std::ptrdiff_t>(std::max<size_t>(rank, 1) - 1);
  std::nth_element(sorted.begin(), at, sorted.end());
  return *at;
}

double Divergence::top1_agreement() const {
  return static_cast<double>(agreed_) / static_cast<double>(divergences_.size());
}

}  // namespace gsa
