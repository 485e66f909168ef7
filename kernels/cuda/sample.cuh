// Drawing tokens and scoring rows of logits on the device.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/sample_rows.cuh"
#include "kernels/sampling.h"

namespace gsa::cuda {

// Draws tokens and scores rows of logits on the device. Used by one thread, on one stream.
//
// The results are those of cpu::sample_row() and cpu::score_row() up to rounding: probabilities are
// integers in units of 2^-43 of the likeliest token's, so that sums do not depend on their order
// and a run repeats bit for bit. A token less than 2^-44 as likely as the likeliest is never drawn,
// and a draw or a cut (top-p, typical-p, min-p) may fall on the other side of a border that lies
// within N * 2^-44 times the likeliest token's probability. Logits that differ by less than 2^-44
// of the row's range (of 31 temperatures, where it is wider) count as ties in top-k, top-p and
// typical-p. Greedy is exact.
class Sampler {
 public:
  // Memory for calls of up to `rows` rows of N logits, N <= 2^20. Called once, before the others.
  void reserve(int64_t rows, int64_t N);

  // Queues the draw of one token per row of logits [rows, N] f32 (device memory) and returns
  // without waiting; what `rows` refers to is copied. REQUIRES: fewer than two calls not yet
  // collected.
  void queue(const Launch& how, const float* logits, int64_t N, std::span<const SampleRow> rows);

  // Waits for the oldest queued call and returns its results in order. Throws where a row holds a
  // NaN; the call is then collected all the same.
  void collect(std::span<SampleResult> results);

  // Whether a call is not yet collected.
  bool queued() const { return queued_ > collected_; }
  // Waits for the calls not yet collected and forgets them. Does not throw.
  void drop();

  // [rows] the tokens that the latest queue() drew, in device memory; the address does not change.
  // The row of a NaN holds some token of the vocabulary.
  const int32_t* tokens() const { return latest_.get(); }

  // Log-probabilities of given tokens and of the `top` likeliest; waits. Calls not yet collected
  // stay queued.
  void score(const Launch& how, const float* logits, int64_t N, std::span<const int32_t> targets,
             int32_t top, std::span<SampleResult> results);

 private:
  // What a queued call reads and writes in host memory; the kernels reach it over the bus.
  struct Call {
    size_t rows = 0;
    int64_t N = 0;
    PinnedArray<RowParams> params;
    PinnedArray<ListEntry> lists;
    size_t list_capacity = 0;
    PinnedArray<int32_t> asked;  // [rows] how many log-probabilities the device reports; -1: none
    PinnedArray<RowScore> scores;
    PinnedArray<TokenLogprob> top;  // [rows, kTopOnDevice]
    // Rows that ask for more than that: their logits are brought to the host.
    std::vector<int32_t> wide_rows;
    std::vector<int32_t> wide_top;
    PinnedArray<float> wide_logits;  // [wide_rows, N]
    size_t wide_capacity = 0;
    Event done;
  };

  struct Packed {
    int32_t adjusted = 0;  // rows with bias, penalties or bans
    bool greedy = true;    // all rows
    bool scored = false;   // some row, by the device
  };

  static Packed pack(std::span<const SampleRow> rows, int64_t N, Call& call);
  static void copy_wide_rows(const Launch& how, const float* logits, Call& call);
  static void read_results(const Call& call, std::span<SampleResult> results);

  int64_t rows_ = 0;
  std::array<Call, 2> calls_;
  int64_t queued_ = 0;  // calls so far; call i uses calls_[i % 2]
  int64_t collected_ = 0;
  std::array<DeviceArray<int32_t>, 2> drawn_;  // [rows] tokens of call i in drawn_[i % 2]
  DeviceArray<int32_t> latest_;                // [rows] the same, at one address
  DeviceArray<float> adjusted_;                // [rows, N] logits with bias, penalties and bans
  Call scoring_;
  size_t scoring_rows_ = 0;
  PinnedArray<int32_t> targets_;
};

}  // namespace gsa::cuda
