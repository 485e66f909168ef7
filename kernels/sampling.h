#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace gsa {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

struct LogitBias {
  int32_t token = 0;
  float bias = 0;  // added to the logit; -infinity bans the token
};

// How the next token is drawn from the logits. Applied in this order: logit bias, repetition,
// presence and frequency penalty, temperature, top-k, typical-p, top-p, min-p, draw.
struct SamplingParams {
  double temperature = 1;         // 0: greedy, and everything below but the penalties is ignored
  int32_t top_k = 0;              // 0: off
  double top_p = 1;               // in (0, 1]; 1: off
  double min_p = 0;               // in [0, 1]; 0: off
  double typical_p = 1;           // in (0, 1]; 1: off
  double repetition_penalty = 1;  // > 0; 1: off
  double presence_penalty = 0;
  double frequency_penalty = 0;
  uint64_t seed = 0;
  int32_t logprobs = 0;  // how many of the most likely tokens to report
  std::vector<LogitBias> logit_bias{};
};

// How often a token occurs in what the penalties look at; a token stands once in a row's list.
struct TokenCount {
  int32_t token = 0;
  int32_t in_context = 0;  // prompt and output: repetition penalty
  int32_t in_output = 0;   // output: presence and frequency penalty
};

// One row of logits to draw from.
struct SampleRow {
  const SamplingParams* params = nullptr;
  uint64_t index = 0;  // place of the new token in its sequence: the random counter
  std::span<const TokenCount> counts{};
  std::span<const int32_t> banned{};  // EOS before min_tokens, for instance
  // Row of the draw queued before this one whose token is not yet in `counts`, since the host may
  // not know it: it counts once more, in context and output. -1: all are in.
  int32_t pending_row = -1;
};

struct SampleResult {
  int32_t token = 0;
  // Log-probabilities under the model's own distribution (softmax of the raw logits), natural log:
  // of the token, and of the most likely ones in order. sample() fills them where
  // params->logprobs > 0, score() always.
  float logprob = 0;
  std::vector<TokenLogprob> top;
};

// A uniform number in [0, 1) that depends on (seed, index) alone: Philox4x32-10 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011), 53 bits of its first two words.
double uniform(uint64_t seed, uint64_t index);

// Throws what a backend says about a row of logits that holds a NaN.
[[noreturn]] void throw_nan_logits();

}  // namespace gsa
