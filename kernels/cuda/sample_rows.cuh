// What the host hands to the sampling kernels, and their launchers.
#pragma once

#include <cstdint>

#include "kernels/cuda/common.cuh"
#include "kernels/sampling.h"

namespace gsa::cuda {

// The likeliest tokens that the device can report per row.
constexpr int32_t kTopOnDevice = 64;
// Bits of a token id in the keys that order tokens.
constexpr int kTokenBits = 20;

// A row's sampling parameters. The kernels read it from host memory, one line per row.
struct alignas(128) RowParams {
  uint64_t uniform;            // the random number, times 2^64
  double inverse_temperature;  // 0: greedy
  double top_p;
  double typical_p;
  double min_p;
  double presence_penalty;
  double frequency_penalty;
  float repetition_penalty;
  int32_t top_k;         // 0: off
  int32_t pending_row;   // row of the previous call whose token counts once more, or -1
  int32_t adjusted_row;  // row of scratch that takes the adjusted logits, or -1: none
  int32_t list;          // this row's first ListEntry: first biases, in the order of their tokens,
  int32_t biases;        // then counts, then bans
  int32_t counts;
  int32_t bans;
};

struct ListEntry {
  int32_t token;
  union {
    float bias;
    uint32_t count;  // in the output; kInContext is added where the token stands in the context
  };
};
constexpr uint32_t kInContext = 0x80000000u;

struct RowScore {
  int32_t token;
  int32_t nan;  // a logit of the row is not a number
  float logprob;
};

struct DrawArgs {
  const float* logits;  // [rows, N]
  int32_t rows;
  int32_t N;
  const RowParams* params;  // [rows], host memory
  const ListEntry* lists;   // host memory
  const int32_t* previous;  // the tokens that the call before drew
  float* adjusted;          // scratch, [.., N]
  int32_t* tokens;          // [rows]
  int32_t* latest;          // [rows], the same tokens
  RowScore* scores;         // [rows], host memory; token and nan are set
};

// One token per row. Rows that are all greedy and unadjusted take a kernel of their own.
void launch_draw(const Launch& how, const DrawArgs& args);
void launch_greedy(const Launch& how, const DrawArgs& args);

struct ScoreArgs {
  const float* logits;  // [rows, N]
  int32_t rows;
  int32_t N;
  const int32_t* targets;  // [rows]
  const int32_t* top;  // [rows] how many of the likeliest to report, host memory; -1: skips the row
  RowScore* scores;    // [rows], host memory; nan and logprob are set
  TokenLogprob* best;  // [rows, kTopOnDevice], host memory
};

void launch_score(const Launch& how, const ScoreArgs& args);

}  // namespace gsa::cuda
