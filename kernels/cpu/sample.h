#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/sampling.h"

namespace gsa::cpu {

// Draws from one row of n logits; see SamplingParams for the order. Arithmetic is float64, ties go
// to the lower id, and the draw walks the kept tokens in the order of their ids.
// REQUIRES: no NaN among the logits, n >= 1.
SampleResult sample_row(const float* logits, int64_t n, const SampleRow& row);

// The counts with one more of `token`, in context and output.
std::vector<TokenCount> count_once_more(std::span<const TokenCount> counts, int32_t token);

// Log-probability of `token` and of the `top` most likely tokens, from float64 sums.
SampleResult score_row(const float* logits, int64_t n, int32_t token, int32_t top);

}  // namespace gsa::cpu
