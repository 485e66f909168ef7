#include "kernels/cuda/sample.cuh"

#include <algorithm>
#include <cassert>
#include <cmath>

#include "kernels/cpu/sample.h"

namespace gsa::cuda {
namespace {

bool penalizes(const SamplingParams& p) {
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
}

size_t longest_list(const SampleRow& row) {
  return row.params->logit_bias.size() + row.counts.size() + row.banned.size();
}

// Entries of the row's lists that have an effect, from `list` on. Fills in their numbers.
void pack_lists(const SampleRow& row, int64_t N, ListEntry* list, RowParams& out) {
  const auto in_vocabulary = [N](int32_t token) { return token >= 0 && token < N; };
  ListEntry* at = list;
  for (const LogitBias& b : row.params->logit_bias) {
    if (in_vocabulary(b.token)) *at++ = {.token = b.token, .bias = b.bias};
  }
  const auto by_token = [](const ListEntry& a, const ListEntry& b) { return a.token < b.token; };
  if (!std::is_sorted(list, at, by_token)) std::stable_sort(list, at, by_token);
  out.biases = static_cast<int32_t>(at - list);
  list = at;
  if (penalizes(*row.params)) {
    for (const TokenCount& c : row.counts) {
      assert(in_vocabulary(c.token));
      *at++ = {.token = c.token,
               .count = static_cast<uint32_t>(std::max(c.in_output, 0)) |
                        (c.in_context > 0 ? kInContext : 0)};
    }
    out.pending_row = row.pending_row;
  }
  out.counts = static_cast<int32_t>(at - list);
  list = at;
  for (int32_t token : row.banned) {
    if (in_vocabulary(token)) *at++ = {.token = token, .count = 0};
  }
  out.bans = static_cast<int32_t>(at - list);
}

RowParams params_of(const SampleRow& row) {
  const SamplingParams& p = *row.params;
  RowParams out = {};
  out.uniform = static_cast<uint64_t>(std::ldexp(gsa::uniform(p.seed, row.index), 64));
  // Kept finite and above 0, which means greedy.
  out.inverse_temperature = p.temperature == 0 ? 0 : std::clamp(1 / p.temperature, 1e-300, 1e300);
  out.top_p = p.top_p;
  out.typical_p = p.typical_p;
  out.min_p = p.min_p;
  out.presence_penalty = p.presence_penalty;
  out.frequency_penalty = p.frequency_penalty;
  out.repetition_penalty = static_cast<float>(p.repetition_penalty);
  out.top_k = p.top_k;
  out.pending_row = -1;
  out.adjusted_row = -1;
  return out;
}

}  // namespace

void Sampler::reserve(int64_t rows, int64_t N) {
  if (N > int64_t{1} << kTokenBits) {
    throw Error("--device cuda samples from vocabularies of up to " +
                std::to_string(1 << kTokenBits) + " tokens; this model has " + std::to_string(N));
  }
  rows_ = rows;
  for (Call& call : calls_) {
    call.params = PinnedArray<RowParams>(rows);
    call.scores = PinnedArray<RowScore>(rows);
    call.top = PinnedArray<TokenLogprob>(rows * kTopOnDevice);
    call.asked = PinnedArray<int32_t>(rows);
    GSA_CUDA_CHECK(cudaEventCreateWithFlags(call.done.out(), cudaEventDisableTiming));
  }
  GSA_CUDA_CHECK(cudaEventCreateWithFlags(scoring_.done.out(), cudaEventDisableTiming));
  for (auto& tokens : drawn_) tokens = DeviceArray<int32_t>(rows);
  latest_ = DeviceArray<int32_t>(rows);
  adjusted_ = DeviceArray<float>(rows * N);
}

Sampler::Packed Sampler::pack(std::span<const SampleRow> rows, int64_t N, Call& call) {
  size_t longest = 0;
  for (const SampleRow& row : rows) longest += longest_list(row);
  if (longest > call.list_capacity) {
    call.list_capacity = 2 * longest;
    call.lists = PinnedArray<ListEntry>(call.list_capacity);
  }
  call.rows = rows.size();
  call.N = N;
  call.wide_rows.clear();
  call.wide_top.clear();
  Packed packed;
  int32_t list = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    RowParams p = params_of(rows[r]);
    p.list = list;
    pack_lists(rows[r], N, call.lists.get() + list, p);
    list += p.biases + p.counts + p.bans;
    if (list > p.list || p.pending_row >= 0) p.adjusted_row = packed.adjusted++;
    packed.greedy &= p.inverse_temperature == 0;
    call.params[r] = p;

    const int32_t logprobs = rows[r].params->logprobs;
    const bool wide = logprobs > kTopOnDevice;
    if (wide) {
      call.wide_rows.push_back(static_cast<int32_t>(r));
      call.wide_top.push_back(logprobs);
    }
    call.asked[r] = logprobs <= 0 || wide ? -1 : logprobs;
    packed.scored |= call.asked[r] >= 0;
  }
  return packed;
}

void Sampler::queue(const Launch& how, const float* logits, int64_t N,
                    std::span<const SampleRow> rows) {
  assert(queued_ - collected_ < 2 && static_cast<int64_t>(rows.size()) <= rows_);
  if (rows.empty()) return;
  Call& call = calls_[queued_ % 2];
  const Packed packed = pack(rows, N, call);
  const DrawArgs args = {.logits = logits,
                         .rows = static_cast<int32_t>(rows.size()),
                         .N = static_cast<int32_t>(N),
                         .params = call.params.get(),
                         .lists = call.lists.get(),
                         .previous = drawn_[(queued_ + 1) % 2].get(),
                         .adjusted = adjusted_.get(),
                         .tokens = drawn_[queued_ % 2].get(),
                         .latest = latest_.get(),
                         .scores = call.scores.get()};
  if (packed.greedy && packed.adjusted == 0) {
    launch_greedy(how, args);
  } else {
    launch_draw(how, args);
  }
  if (packed.scored) {
    launch_score(how, {.logits = logits,
                       .rows = args.rows,
                       .N = args.N,
                       .targets = args.tokens,
                       .top = call.asked.get(),
                       .scores = args.scores,
                       .best = call.top.get()});
  }
  copy_wide_rows(how, logits, call);
  GSA_CUDA_CHECK(cudaEventRecord(call.done.get(), how.stream));
  ++queued_;
}

void Sampler::copy_wide_rows(const Launch& how, const float* logits, Call& call) {
  const size_t N = call.N;
  if (call.wide_rows.size() * N > call.wide_capacity) {
    call.wide_capacity = call.wide_rows.size() * N;
    call.wide_logits = PinnedArray<float>(call.wide_capacity);
  }
  for (size_t i = 0; i < call.wide_rows.size(); ++i) {
    GSA_CUDA_CHECK(cudaMemcpyAsync(call.wide_logits.get() + i * N, logits + call.wide_rows[i] * N,
                                   N * sizeof(float), cudaMemcpyDeviceToHost, how.stream));
  }
}

void Sampler::collect(std::span<SampleResult> results) {
  if (results.empty()) return;
  assert(collected_ < queued_);
  Call& call = calls_[collected_++ % 2];
  assert(results.size() == call.rows);
  GSA_CUDA_CHECK(cudaEventSynchronize(call.done.get()));
  read_results(call, results);
  for (size_t i = 0; i < call.wide_rows.size(); ++i) {
    SampleResult& result = results[call.wide_rows[i]];
    result =
        cpu::score_row(call.wide_logits.get() + i * call.N, call.N, result.token, call.wide_top[i]);
  }
}

void Sampler::drop() {
  for (; queued(); ++collected_) cudaEventSynchronize(calls_[collected_ % 2].done.get());
}

void Sampler::read_results(const Call& call, std::span<SampleResult> results) {
  for (size_t r = 0; r < results.size(); ++r) {
    if (call.scores[r].nan) throw_nan_logits();
  }
  for (size_t r = 0; r < results.size(); ++r) {
    results[r] = {};
    results[r].token = call.scores[r].token;
    const int32_t asked = call.asked[r];
    if (asked < 0) continue;
    results[r].logprob = call.scores[r].logprob;
    const TokenLogprob* top = call.top.get() + r * kTopOnDevice;
    results[r].top.assign(top, top + std::min<int64_t>(asked, call.N));
  }
}

void Sampler::score(const Launch& how, const float* logits, int64_t N,
                    std::span<const int32_t> targets, int32_t top,
                    std::span<SampleResult> results) {
  assert(targets.size() == results.size());
  if (results.empty()) return;
  const size_t rows = results.size();
  Call& call = scoring_;
  if (rows > scoring_rows_) {
    call.scores = PinnedArray<RowScore>(rows);
    call.top = PinnedArray<TokenLogprob>(rows * kTopOnDevice);
    call.asked = PinnedArray<int32_t>(rows);
    targets_ = PinnedArray<int32_t>(rows);
    scoring_rows_ = rows;
  }
  const bool wide = top > kTopOnDevice;
  call.rows = rows;
  call.N = N;
  std::copy(targets.begin(), targets.end(), targets_.get());
  std::fill_n(call.asked.get(), rows, wide ? 0 : std::max(top, 0));
  for (size_t r = 0; r < rows; ++r) call.scores[r].token = targets[r];
  launch_score(how, {.logits = logits,
                     .rows = static_cast<int32_t>(rows),
                     .N = static_cast<int32_t>(N),
                     .targets = targets_.get(),
                     .top = call.asked.get(),
                     .scores = call.scores.get(),
                     .best = call.top.get()});
  GSA_CUDA_CHECK(cudaEventRecord(call.done.get(), how.stream));
  GSA_CUDA_CHECK(cudaEventSynchronize(call.done.get()));
  read_results(call, results);
  if (!wide) return;
  std::vector<float> row(N);
  for (size_t r = 0; r < rows; ++r) {
    GSA_CUDA_CHECK(cudaMemcpyAsync(row.data(), logits + r * N, N * sizeof(float),
                                   cudaMemcpyDeviceToHost, how.stream));
    GSA_CUDA_CHECK(cudaStreamSynchronize(how.stream));
    results[r] = cpu::score_row(row.data(), N, targets[r], top);
  }
}

}  // namespace gsa::cuda
