#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gsa {

// How far a model's next-token distributions are from those of a base model, position by position.
class Divergence {
 public:
  // One position's logits of both, [N] each.
  void add(std::span<const float> base, std::span<const float> model);

  // Of the Kullback-Leibler divergences D(base || model), in nats. REQUIRES: something was added.
  double mean() const;
  double percentile(double percent) const;
  // The share of positions where both find the same token likeliest.
  double top1_agreement() const;

 private:
  std::vector<double> divergences_;
  int64_t agreed_ = 0;
};

}  // namespace gsa
