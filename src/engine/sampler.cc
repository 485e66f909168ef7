#include "engine/sampler.h"

#include <utility>

namespace gsa {

Sampler::Sampler(const SamplingParams& params, std::span<const int32_t> context, int64_t window,
                 std::vector<int32_t> banned, int64_t min_tokens)
    : params_(params),
      first_(context.size()),
      window_(window),
      banned_(std::move(banned)),
      min_tokens_(min_tokens) {
  // What looks back at nothing repeats nothing, whatever a backend counts.
  if (window_ == 0) params_.repetition_penalty = 1;
  if (!penalizes()) return;
  for (int32_t token : context) push_context(token);
}

bool Sampler::penalizes() const {
  return params_.repetition_penalty != 1 || params_.presence_penalty != 0 ||
         params_.frequency_penalty != 0;
}

SampleRow Sampler::row() const { return row_at(drawn_); }

SampleRow Sampler::row_after(int32_t pending) {
  // The pending token pushes the oldest one out of the window, whatever it will be.
  if (window_ > 0) shrink_context(window_ - 1);
  SampleRow row = row_at(drawn_ + 1);
  if (penalizes()) row.pending_row = pending;
  return row;
}

SampleRow Sampler::row_at(uint64_t drawn) const {
  SampleRow row{.params = &params_, .index = first_ + drawn, .counts = counts_, .banned = {}};
  if (static_cast<int64_t>(drawn) < min_tokens_) row.banned = banned_;
  return row;
}

void Sampler::accept(int32_t token) {
  ++drawn_;
  if (!penalizes()) return;
  push_context(token);
  ++count_of(token).in_output;
}

TokenCount& Sampler::count_of(int32_t token) {
  const auto [it, fresh] = positions_.try_emplace(token, counts_.size());
  if (fresh) counts_.push_back({.token = token});
  return counts_[it->second];
}

void Sampler::push_context(int32_t token) {
  ++count_of(token).in_context;
  if (window_ < 0) return;
  context_.push_back(token);
  shrink_context(window_);
}

void Sampler::shrink_context(int64_t size) {
  while (static_cast<int64_t>(context_.size()) > size) {
    --count_of(context_.front()).in_context;
    context_.pop_front();
  }
}

}  // namespace gsa
