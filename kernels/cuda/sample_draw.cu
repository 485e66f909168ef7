// Draws one token per row of logits. One block a row; the first filter that leaves few tokens hands
// them to the whole block, a thread each.
#include "kernels/cuda/sample_chain.cuh"

namespace gsa::cuda {
namespace {

template <typename Change>
__device__ __forceinline__ void change_chain(DrawShared& s, Change change) {
  __syncthreads();
  if (threadIdx.x == 0) change(s.chain);
  __syncthreads();
}

__device__ __forceinline__ double ratio(Wide a, Wide b) {
  return static_cast<double>(a) / static_cast<double>(b);
}

// exp(-x) x in units of mass: what a token adds to the expected distance.
__device__ __forceinline__ Wide weighted_distance(const Chain& chain, float logit, Wide mass) {
  return mass == 0 ? 0 : __double2ull_rn(static_cast<double>(mass) * chain.distance(logit));
}

__device__ __forceinline__ float penalized(float logit, uint32_t count, const RowParams& p) {
  // Rounded after every operation, as the CPU does.
  if (count & kInContext) {
    logit =
        logit > 0 ? __fdiv_rn(logit, p.repetition_penalty) : __fmul_rn(logit, p.repetition_penalty);
  }
  const uint32_t in_output = count & ~kInContext;
  if (in_output == 0) return logit;
  const double penalty =
      __dadd_rn(p.presence_penalty, __dmul_rn(p.frequency_penalty, static_cast<double>(in_output)));
  return __fsub_rn(logit, static_cast<float>(penalty));
}

// Copies the row; returns whether this thread saw a NaN.
__device__ __forceinline__ bool copy(const Row& row, float* out) {
  bool nan = false;
  if (row.aligned()) {
    row.for_each_vector<4>(0, row.N / 4, threadIdx.x, kRowThreads, [&](float4 x, int v) {
      reinterpret_cast<float4*>(out)[v] = x;
      nan |= isnan(x.x) || isnan(x.y) || isnan(x.z) || isnan(x.w);
    });
  } else {
    for (int i = threadIdx.x; i < row.N; i += kRowThreads) {
      out[i] = row.logits[i];
      nan |= isnan(row.logits[i]);
    }
  }
  return nan;
}

// Bias, penalties and bans, on a copy of the row. Returns whether the row held a NaN.
__device__ bool adjust(const Row& row, const ListEntry* list, const int32_t* previous, float* out,
                       DrawShared& s) {
  const RowParams& p = s.params;
  bool nan = copy(row, out);
  const int32_t pending = p.pending_row < 0 ? -1 : previous[p.pending_row];
  if (threadIdx.x == 0) s.pending_found = pending < 0;
  nan = __syncthreads_or(nan);

  for (int i = threadIdx.x; i < p.biases; i += kRowThreads) {
    const int32_t token = list[i].token;
    if (i > 0 && list[i - 1].token == token) continue;
    // Biases of one token follow each other, and are added in turn.
    for (int j = i; j < p.biases && list[j].token == token; ++j) {
      out[token] = __fadd_rn(out[token], list[j].bias);
    }
  }
  __syncthreads();
  list += p.biases;
  for (int i = threadIdx.x; i < p.counts; i += kRowThreads) {
    const int32_t token = list[i].token;
    uint32_t count = list[i].count;
    if (token == pending) {
      count = (count + 1) | kInContext;
      s.pending_found = 1;
    }
    out[token] = penalized(out[token], count, p);
  }
  __syncthreads();
  if (threadIdx.x == 0 && !s.pending_found) {
    out[pending] = penalized(out[pending], kInContext | 1, p);
  }
  __syncthreads();
  list += p.counts;
  for (int i = threadIdx.x; i < p.bans; i += kRowThreads) out[list[i].token] = -infinity();
  __syncthreads();
  return nan;
}

// The whole chain on the listed candidates, one per thread. `row_mass` is the mass of the whole row
// where top-p is to look at that, or 0. The token is returned to the first thread; warps without
// candidates have nothing to do, and must exit on return.
__device__ int32_t draw_from_list(int N, Wide row_mass, DrawShared& s) {
  const RowParams& p = s.params;
  const Chain& chain = s.chain;
  CandidateList& list = s.list;
  const int me = threadIdx.x;
  const int warps = (list.count + 31) / 32;
  if (me / 32 >= warps) return 0;
  const bool mine = me < list.count;
  const float logit = mine ? list.logit[me] : 0;
  const int32_t token = mine ? list.token[me] : 0;
  Wide mass = mine ? chain.mass(logit) : 0;
  if (mine) list.mass[me] = mass;
  const Wide likely_key = mine ? chain.key(Order::kLikely, logit, token) : 0;
  // A candidate that a filter drops weighs nothing from there on.
  const auto keep_if = [&](bool kept) {
    __syncthreads();
    if (mine && !kept) list.mass[me] = mass = 0;
  };

  if (p.top_k > 0 && p.top_k < min(N, list.count)) {
    __syncthreads();
    if (mine) list.key[me] = likely_key;
    __syncthreads();
    int rank = 0;
    if (mine) {
#pragma unroll 4
      for (int j = 0; j < list.count; ++j) rank += list.key[j] < likely_key;
    }
    keep_if(rank < p.top_k);
  }
  if (p.typical_p < 1) {
    const Wide total = block_total(mass, s.scratch, warps);
    const Wide weighted = block_total(weighted_distance(chain, logit, mass), s.scratch, warps);
    change_chain(s, [&](Chain& c) { c.center = ratio(weighted, total); });
    const Wide key = mine ? chain.key(Order::kTypical, logit, token) : 0;
    const Wide before = mass_before(key, list);
    keep_if(before < share_of(p.typical_p, total));
  }
  if (p.top_p < 1) {
    const Wide total = row_mass > 0 ? row_mass : block_total(mass, s.scratch, warps);
    const Wide before = mass_before(likely_key, list);
    keep_if(before < share_of(p.top_p, total));
  }
  if (p.min_p > 0) {
    const Wide best = block_largest(mass, s.scratch, warps);
    keep_if(!(static_cast<double>(mass) < p.min_p * static_cast<double>(best)));
  }
  const Wide total = block_total(mass, s.scratch, warps);
  const Wide target = __umul64hi(p.uniform, total);
  const Wide before = mass_before(static_cast<Wide>(token), list);
  if (mass > 0 && before <= target && target < before + mass) s.token = token;
  __syncthreads();
  return s.token;
}

// Draws among the kept tokens of the row, in the order of their ids: finds the warp in whose range
// of tokens the draw falls, then the token.
__device__ int32_t walk(const Row& row, DrawShared& s) {
  const Chain& chain = s.chain;
  const int range = ((row.N + kRowWarps - 1) / kRowWarps + 3) / 4 * 4;
  const int lane = threadIdx.x % 32;
  {
    const int begin = threadIdx.x / 32 * range;
    Wide sum = 0;
    for_each_kept(row, chain, begin, min(begin + range, row.N), lane, 32,
                  [&](float, int, Wide mass) { sum += mass; });
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
    __syncthreads();
    if (lane == 0) s.scratch[threadIdx.x / 32] = sum;
    __syncthreads();
  }
  const Wide in_range = s.scratch[lane];
  const Wide upto = warp_prefix(in_range);
  const Wide target = __umul64hi(s.params.uniform, __shfl_sync(kAllLanes, upto, 31));
  const int hit = __ffs(__ballot_sync(kAllLanes, upto > target)) - 1;
  Wide passed = __shfl_sync(kAllLanes, upto - in_range, hit);
  const int end = min((hit + 1) * range, row.N);
  for (int at = hit * range; at < end && passed <= target; at += kRowThreads) {
    const int token = at + threadIdx.x;
    const Wide mass = token < end ? chain.kept_mass(row.logits[token], token) : 0;
    const Prefix sum = block_prefix(mass, s.scratch);
    const Wide before = passed + sum.before;
    if (mass > 0 && before <= target && target < before + mass) s.token = token;
    passed += sum.total;
  }
  __syncthreads();
  return s.token;
}

// The chain on the whole row, where the first filter may leave many tokens.
__device__ int32_t draw_from_row(const Row& row, DrawShared& s) {
  const RowParams& p = s.params;
  const auto cut_likely = [&](Wanted wanted) {
    const Wide cut = find_cut(row, Order::kLikely, wanted, s);
    change_chain(s, [&](Chain& c) { c.cut_likely(cut); });
  };
  if (p.top_k > 0 && p.top_k < row.N) cut_likely({.count = static_cast<Wide>(p.top_k)});
  if (p.typical_p < 1) {
    Wide total = 0, weighted = 0;
    for_each_kept(row, s.chain, [&](float logit, int, Wide mass) {
      total += mass;
      weighted += weighted_distance(s.chain, logit, mass);
    });
    total = block_total(total, s.scratch);
    weighted = block_total(weighted, s.scratch);
    change_chain(s, [&](Chain& c) { c.center = ratio(weighted, total); });
    const Wide cut = find_cut(row, Order::kTypical, {.share = p.typical_p}, s);
    change_chain(s, [&](Chain& c) { c.typical_cut = cut; });
  }
  if (p.top_p < 1) cut_likely({.share = p.top_p});
  if (p.min_p > 0) {
    Wide best = Wide{1} << kMassBits;
    if (p.typical_p < 1) {  // the likeliest token may be gone
      best = 0;
      for_each_kept(row, s.chain, [&](float, int, Wide mass) { best = max(best, mass); });
      best = block_largest(best, s.scratch);
    }
    const Wide least = __double2ull_ru(p.min_p * static_cast<double>(best));
    change_chain(s, [&](Chain& c) { c.least_mass = least; });
  }
  return walk(row, s);
}

// Lists the `count` likeliest tokens, and some more. Returns whether they fit.
__device__ bool list_likeliest(const Row& row, const Look& look, int count, DrawShared& s) {
  if (threadIdx.x == 0) s.list.count = 0;
  const uint32_t bound = count < row.N ? bound_of_largest(look.order, count) : 0;  // has barriers
  __syncthreads();
  if (look.order >= bound) {  // few threads have seen a logit that reaches the bound
    row.for_each<4>([&](float logit, int token) {
      if (order_of(logit) >= bound) append(logit, token, s.list);
    });
  }
  __syncthreads();
  return s.list.count <= kCandidates;
}

// Whether the list, of the row's likeliest, holds all that top-p keeps. Sets the row's mass.
__device__ bool holds_top_p(const Row& row, DrawShared& s, Wide& row_mass) {
  Wide sum = 0;
  for_each_kept(row, s.chain, [&](float, int, Wide mass) { sum += mass; });
  row_mass = block_total(sum, s.scratch);
  const bool mine = threadIdx.x < s.list.count;
  const Wide listed =
      block_total(mine ? s.chain.mass(s.list.logit[threadIdx.x]) : Wide{0}, s.scratch);
  return listed >= share_of(s.params.top_p, row_mass);
}

__device__ int32_t draw(const Row& row, const Look& look, DrawShared& s) {
  const RowParams& p = s.params;
  if (p.inverse_temperature == 0 || !isfinite(look.largest)) return look.token;
  change_chain(s, [&](Chain& c) { c.start(look, p.inverse_temperature); });
  const int k = p.top_k > 0 ? min(p.top_k, row.N) : row.N;
  if (k <= kCandidates) {
    if (list_likeliest(row, look, k, s)) return draw_from_list(row.N, 0, s);
  } else if (k == row.N && p.typical_p >= 1 && p.top_p < 1) {
    // A trained model's top-p seldom keeps more than this.
    constexpr int kLikeliest = 256;
    Wide row_mass;
    if (list_likeliest(row, look, kLikeliest, s) && holds_top_p(row, s, row_mass)) {
      return draw_from_list(row.N, row_mass, s);
    }
  }
  return draw_from_row(row, s);
}

__device__ __forceinline__ void put(const DrawArgs& args, int r, int32_t token, bool nan) {
  args.tokens[r] = token;
  args.latest[r] = token;
  args.scores[r].token = token;
  args.scores[r].nan = nan;
}

__global__ void __launch_bounds__(kRowThreads, 1) draw_kernel(DrawArgs args) {
  __shared__ DrawShared s;
  const int r = blockIdx.x;
  grid_release();
  // Parameters and lists come over the bus, while the kernel before may still run.
  constexpr int kWords = sizeof(RowParams) / 4;
  if (threadIdx.x < kWords) {
    reinterpret_cast<uint32_t*>(&s.params)[threadIdx.x] =
        reinterpret_cast<const uint32_t*>(args.params + r)[threadIdx.x];
  }
  __syncthreads();
  const ListEntry* list = args.lists + s.params.list;
  const int entries = s.params.biases + s.params.counts + s.params.bans;
  static_assert(sizeof(ListEntry) == sizeof(s.list.key[0]));
  if (entries <= kCandidates) {
    ListEntry* near = reinterpret_cast<ListEntry*>(s.list.key);  // not in use yet
    if (threadIdx.x < entries) near[threadIdx.x] = list[threadIdx.x];
    list = near;
  }
  grid_wait();

  Row row{args.logits + static_cast<int64_t>(r) * args.N, args.N};
  bool nan = false;
  const bool adjusted = s.params.adjusted_row >= 0;
  if (adjusted) {
    float* out = args.adjusted + static_cast<int64_t>(s.params.adjusted_row) * args.N;
    nan = adjust(row, list, args.previous, out, s);
    row.logits = out;
  }
  const Look look = look_at(row, s.look);
  if (!adjusted) nan = look.nan;
  const int32_t token = draw(row, look, s);
  if (threadIdx.x == 0) put(args, r, token, nan);
}

// Blocks on a multiprocessor: some devices' have 1,536 threads, others' 2,048.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 860 || __CUDA_ARCH__ == 870 || \
                               __CUDA_ARCH__ == 890 || __CUDA_ARCH__ >= 1200)
constexpr int kGreedyBlocks = 1;
#else
constexpr int kGreedyBlocks = 2;
#endif
__global__ void __launch_bounds__(kRowThreads, kGreedyBlocks) greedy_kernel(DrawArgs args) {
  __shared__ LookShared s;
  grid_release();
  grid_wait();
  const int r = blockIdx.x;
  const Look look = look_at({args.logits + static_cast<int64_t>(r) * args.N, args.N}, s);
  if (threadIdx.x == 0) put(args, r, look.token, look.nan);
}

}  // namespace

void launch_draw(const Launch& how, const DrawArgs& args) {
  launch(how, {.blocks = dim3(args.rows), .threads = kRowThreads}, draw_kernel, args);
}

void launch_greedy(const Launch& how, const DrawArgs& args) {
  launch(how, {.blocks = dim3(args.rows), .threads = kRowThreads}, greedy_kernel, args);
}

}  // namespace gsa::cuda
