// Log-probabilities of given tokens and of the likeliest ones. One block a row.
#include "kernels/cuda/sample_device.cuh"

namespace gsa::cuda {
namespace {

struct ScoreShared {
  Wide scratch[kRowWarps];
  LookShared look;
  Wide key[kCandidates];  // ascends from the likeliest; equal logits are ordered by the token
  int32_t count;
};

__device__ __forceinline__ Wide key_of(float logit, int32_t token) {
  return Wide{~order_of(logit)} << 32 | static_cast<uint32_t>(token);
}

// Lists the tokens whose keys are at most `last`; the count goes on where the room ends.
__device__ __forceinline__ void append_key(Wide key, Wide last, ScoreShared& s) {
  if (key > last) return;
  const int at = atomicAdd(&s.count, 1);
  if (at < kCandidates) s.key[at] = key;
}

// The `top`-th key. Slow: a look at the row per bit, for rows of which many logits are equal.
__device__ __noinline__ Wide find_last(const Row& row, int top, Wide* scratch) {
  Wide last = 0;
  for (Wide bit = Wide{1} << 63; bit != 0; bit >>= 1) {
    Wide before = 0;
    row.for_each<4>([&](float logit, int token) { before += key_of(logit, token) < (last | bit); });
    if (block_total(before, scratch) < static_cast<Wide>(top)) last |= bit;
  }
  return last;
}

// Mass of the tokens that fall to this thread.
__device__ __forceinline__ Wide thread_mass(const Row& row, double largest) {
  Wide sum = 0;
  if (row.aligned()) {
    row.for_each_vector<2>(0, row.N / 4, threadIdx.x, kRowThreads, [&](float4 x, int) {
      sum += mass_at(largest - x.x) + mass_at(largest - x.y) + mass_at(largest - x.z) +
             mass_at(largest - x.w);
    });
  } else {
    row.for_each<1>([&](float logit, int) { sum += mass_at(largest - logit); });
  }
  return sum;
}

__global__ void __launch_bounds__(kRowThreads, 1) score_kernel(ScoreArgs args) {
  __shared__ ScoreShared s;
  const int r = blockIdx.x;
  grid_release();
  const int32_t top = min(args.top[r], args.N);
  if (threadIdx.x == 0) s.count = 0;
  grid_wait();
  if (top < 0) return;

  const Row row{args.logits + static_cast<int64_t>(r) * args.N, args.N};
  const Look look = look_at(row, s.look);
  const uint32_t bound = top > 0 ? bound_of_largest(look.order, top) : 0;
  const Wide last = top > 0 ? Wide{~bound} << 32 | 0xffffffffu : 0;
  const double largest = look.largest;
  if (top > 0 && look.order >= bound) {  // few threads have seen a logit that reaches the bound
    row.for_each<4>([&](float logit, int token) { append_key(key_of(logit, token), last, s); });
  }
  const Wide total = block_total(thread_mass(row, largest), s.scratch);
  const double log_sum = largest + log(static_cast<double>(total) / (Wide{1} << kMassBits));
  if (threadIdx.x == 0) {
    args.scores[r].nan = look.nan;
    args.scores[r].logprob = static_cast<float>(row.logits[args.targets[r]] - log_sum);
  }
  if (s.count > kCandidates) {  // the same for all threads: block_total() has barriers
    const Wide exact = find_last(row, top, s.scratch);
    __syncthreads();
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    row.for_each<4>([&](float logit, int token) { append_key(key_of(logit, token), exact, s); });
    __syncthreads();
  }
  if (threadIdx.x >= s.count) return;
  const Wide key = s.key[threadIdx.x];
  int rank = 0;
  for (int j = 0; j < s.count; ++j) rank += s.key[j] < key;
  if (rank >= top) return;
  const int32_t token = static_cast<int32_t>(key & 0xffffffffu);
  TokenLogprob* best = args.best + static_cast<int64_t>(r) * kTopOnDevice + rank;
  best->token = token;
  best->logprob = static_cast<float>(row.logits[token] - log_sum);
}

}  // namespace

void launch_score(const Launch& how, const ScoreArgs& args) {
  launch(how, {.blocks = dim3(args.rows), .threads = kRowThreads}, score_kernel, args);
}

}  // namespace gsa::cuda
