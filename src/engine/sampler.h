#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/sampling.h"

namespace gsa {

// The per-sequence side of sampling: which token comes next in the random sequence, and what the
// penalties count. The arithmetic is Backend::queue_sample.
class Sampler {
 public:
  // `context` are the tokens before the first drawn one. `window`: how many of the latest tokens
  // the repetition penalty looks back at, -1 for all. `banned` are not drawn among the first
  // `min_tokens`. A token is drawn by the random number of its place in the whole sequence, so that
  // a run which goes on from a saved state draws as one that never stopped.
  Sampler(const SamplingParams& params, std::span<const int32_t> context, int64_t window,
          std::vector<int32_t> banned, int64_t min_tokens);

  // What to draw the next token by; valid until accept() or the sampler moves.
  SampleRow row() const;

  // What to draw the token after the next one by, as valid: the next one is drawn by row `pending`
  // of the draw before, and is not known yet. At most once before each accept().
  SampleRow row_after(int32_t pending);

  // The token was drawn.
  void accept(int32_t token);

 private:
  bool penalizes() const;
  TokenCount& count_of(int32_t token);
  void push_context(int32_t token);
  void shrink_context(int64_t size);
  SampleRow row_at(uint64_t drawn) const;

  SamplingParams params_;
  uint64_t first_;  // place of the first drawn token in the whole sequence
  int64_t window_;
  std::vector<int32_t> banned_;
  int64_t min_tokens_;
  uint64_t drawn_ = 0;           // tokens since the context
  std::deque<int32_t> context_;  // the window, where it is bounded
  std::vector<TokenCount> counts_;
  std::unordered_map<int32_t, size_t> positions_;  // of a token in counts_
};

}  // namespace gsa
