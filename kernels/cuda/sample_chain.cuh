// The probabilities of a row and the filters on them, and the cuts that the filters make.
//
// A filter keeps the first tokens of an order until they hold a share of the mass (or are k). That
// needs no sort: a histogram of the mass over the leading bits of the order's keys shows where the
// cut falls, and the few tokens there are ranked against each other.
#pragma once

#include "kernels/cuda/sample_device.cuh"

namespace gsa::cuda {

constexpr int kBinBits = 11;
constexpr int kBins = 1 << kBinBits;

constexpr Wide kNoCut = ~Wide{0};

enum class Order { kLikely, kTypical };

// Few candidates, in the block's shared memory. They come in any order; results do not depend on
// it.
struct CandidateList {
  float logit[kCandidates];
  int32_t token[kCandidates];
  Wide mass[kCandidates];
  Wide key[kCandidates];
  int32_t count;  // as found; may exceed kCandidates, and the list is then of no use
};

// What stands between a logit and its chance to be drawn.
struct Chain {
  float largest;
  float floor;  // no token with a smaller logit is kept: a quick look
  double inverse_temperature;
  double key_scale;
  Wide likely_cut;  // the last key of the order that is kept
  Wide typical_cut;
  double center;  // the expected distance, about which the typical order goes
  Wide least_mass;

  __device__ void start(const Look& look, double inverse) {
    largest = look.largest;
    inverse_temperature = inverse;
    likely_cut = typical_cut = kNoCut;
    center = 0;
    least_mass = 0;
    // Keys spread over what the row's tokens with a mass above 0 span.
    const double span = fmin(kMaxDistance, (double{largest} - double{look.least}) * inverse);
    key_scale = span > 1e-200 ? kKeySteps / span : 0;
    floor = -infinity();
    lower_bound(kMaxDistance);
  }

  // How far a token lies behind the likeliest: minus the logarithm of its mass.
  __device__ double distance(float logit) const {
    return (double{largest} - double{logit}) * inverse_temperature;
  }
  __device__ Wide mass(float logit) const { return mass_at(distance(logit)); }
  // Keys ascend from the first token of the order; equal distances are ordered by the token.
  __device__ Wide key(Order order, float logit, int32_t token) const {
    double x = distance(logit);
    if (order == Order::kTypical) x = fabs(x - center);
    const double step = fmin(x * key_scale, kKeySteps);
    // Rounded down to an integer, which then stands in the low bits.
    const Wide bits = __double_as_longlong(__dadd_rd(step, 0x1p52));
    return bits << kTokenBits | static_cast<Wide>(token);
  }
  // Mass of a token that the filters keep, else 0.
  __device__ Wide kept_mass(float logit, int32_t token) const {
    Wide m = mass(logit);
    if (likely_cut != kNoCut) m = key(Order::kLikely, logit, token) > likely_cut ? 0 : m;
    if (typical_cut != kNoCut) m = key(Order::kTypical, logit, token) > typical_cut ? 0 : m;
    return m < least_mass ? 0 : m;
  }
  __device__ void cut_likely(Wide cut) {
    likely_cut = cut;
    // Two steps more than the cut's: far more than what rounding can do.
    if (cut != kNoCut && key_scale > 0) lower_bound(((cut >> kTokenBits) + 2) / key_scale);
  }

  static constexpr double kKeySteps = (Wide{1} << (64 - kTokenBits)) - 1;

 private:
  __device__ void lower_bound(double distance) {
    floor = fmaxf(floor, __double2float_rd(double{largest} - distance / inverse_temperature));
  }
};

struct DrawShared {
  RowParams params;
  Chain chain;  // changed by one thread, between barriers
  Wide scratch[kRowWarps];
  LookShared look;
  Wide bin_before;  // mass before the bin of the cut
  int32_t bin;
  Wide cut;
  int32_t token;
  int32_t pending_found;
  // Masses of the bins, in halves: shared memory has no addition of 64 bits.
  uint32_t low[kBins];
  uint32_t high[kBins];
  CandidateList list;
};

// visit(logit, token, mass) for the tokens in [begin, end) that the chain keeps, dealt out as by
// Row::for_each().
template <typename Visit>
__device__ __forceinline__ void for_each_kept(const Row& row, const Chain& chain, int begin,
                                              int end, int rank, int width, Visit visit) {
  if (!row.aligned()) {
    row.for_each<1>(begin, end, rank, width, [&](float logit, int token) {
      const Wide mass = logit < chain.floor ? 0 : chain.kept_mass(logit, token);
      if (mass > 0) visit(logit, token, mass);
    });
    return;
  }
  row.for_each_vector<1>(begin / 4, end / 4, rank, width, [&](float4 x, int v) {
    if (fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)) < chain.floor) return;
    const float logit[4] = {x.x, x.y, x.z, x.w};
    Wide mass[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) mass[j] = chain.kept_mass(logit[j], 4 * v + j);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (mass[j] > 0) visit(logit[j], 4 * v + j, mass[j]);
    }
  });
}

template <typename Visit>
__device__ __forceinline__ void for_each_kept(const Row& row, const Chain& chain, Visit visit) {
  for_each_kept(row, chain, 0, row.N, threadIdx.x, kRowThreads, visit);
}

// The mass that the kept tokens must reach.
__device__ __forceinline__ Wide share_of(double share, Wide total) {
  const Wide wanted = __double2ull_ru(share * static_cast<double>(total));
  return wanted < 1 ? 1 : wanted > total ? total : wanted;
}

// Mass of the listed candidates whose key is less than this thread's. Ends in no barrier: the keys
// may be overwritten only after one.
__device__ __forceinline__ Wide mass_before(Wide key, CandidateList& list) {
  __syncthreads();
  if (threadIdx.x < list.count) list.key[threadIdx.x] = key;
  __syncthreads();
  Wide before = 0;
  if (threadIdx.x < list.count) {
#pragma unroll 4
    for (int j = 0; j < list.count; ++j) before += list.key[j] < key ? list.mass[j] : 0;
  }
  return before;
}

// Appends a candidate while there is room; the count goes on. Its mass is left to the thread that
// takes it up.
__device__ __forceinline__ void append(float logit, int32_t token, CandidateList& list) {
  const int at = atomicAdd(&list.count, 1);
  if (at >= kCandidates) return;
  list.logit[at] = logit;
  list.token[at] = token;
}

// What a cut keeps: the first `count` tokens or, with count 0, a share of the mass.
struct Wanted {
  double share = 1;
  Wide count = 0;
};

// Sums the weights of the kept tokens with keys in [from, from + (kBins << shift)) in kBins bins.
__device__ __forceinline__ void fill_bins(const Row& row, const Chain& chain, Order order,
                                          bool by_count, Wide from, int shift, DrawShared& s) {
  for (int bin = threadIdx.x; bin < kBins; bin += kRowThreads) s.low[bin] = s.high[bin] = 0;
  __syncthreads();
  for_each_kept(row, chain, [&](float logit, int token, Wide weight) {
    const Wide key = chain.key(order, logit, token);
    const Wide bin = (key - from) >> shift;
    if (key < from || bin >= kBins) return;
    if (by_count) weight = 1;
    const uint32_t low = static_cast<uint32_t>(weight);
    uint32_t high = static_cast<uint32_t>(weight >> 32);
    if (atomicAdd(&s.low[bin], low) > ~low) ++high;
    if (high != 0) atomicAdd(&s.high[bin], high);
  });
  __syncthreads();
}

// Finds the bin in which the sum reaches `wanted`; returns the sum of all bins.
template <typename WantedOf>
__device__ __forceinline__ Wide find_bin(WantedOf wanted_of, DrawShared& s) {
  static_assert(kBins == 2 * kRowThreads);
  Wide mass[2];
  for (int j = 0; j < 2; ++j) {
    const int bin = 2 * threadIdx.x + j;
    mass[j] = Wide{s.high[bin]} << 32 | s.low[bin];
  }
  const Prefix sum = block_prefix(mass[0] + mass[1], s.scratch);
  const Wide wanted = wanted_of(sum.total);
  for (int j = 0; j < 2; ++j) {
    const Wide before = sum.before + (j == 0 ? 0 : mass[0]);
    if (before < wanted && wanted <= before + mass[j]) {
      s.bin = 2 * threadIdx.x + j;
      s.bin_before = before;
    }
  }
  __syncthreads();
  return sum.total;
}

// The key of the last token that a cut keeps, among those that the chain has kept so far.
__device__ inline __noinline__ Wide find_cut(const Row row, Order order, Wanted wanted,
                                             DrawShared& s) {
  const Chain& chain = s.chain;
  Wide from = 0;
  Wide rest = wanted.count;  // what the tokens from here on must reach
  for (int shift = 64 - kBinBits;; shift = shift > kBinBits ? shift - kBinBits : 0) {
    fill_bins(row, chain, order, wanted.count > 0, from, shift, s);
    const Wide total =
        find_bin([&](Wide sum) { return rest == 0 ? share_of(wanted.share, sum) : rest; }, s);
    if (rest == 0) rest = share_of(wanted.share, total);
    if (rest > total) return kNoCut;  // top-k of more tokens than there are
    from += static_cast<Wide>(s.bin) << shift;
    rest -= s.bin_before;
    if (shift == 0) return from;

    if (threadIdx.x == 0) s.list.count = 0;
    __syncthreads();
    row.for_each<4>([&](float logit, int token) {
      if (logit < chain.floor) return;
      const Wide key = chain.key(order, logit, token);
      if (key >= from && (key - from) >> shift == 0) append(logit, token, s.list);
    });
    __syncthreads();
    if (s.list.count > kCandidates) continue;  // ties, or a crowd: look closer

    const int me = threadIdx.x;
    const bool mine = me < s.list.count;
    Wide key = 0, weight = 0;
    if (mine) {
      key = chain.key(order, s.list.logit[me], s.list.token[me]);
      weight = chain.kept_mass(s.list.logit[me], s.list.token[me]);
      if (wanted.count > 0) weight = min(weight, Wide{1});
      s.list.mass[me] = weight;
    }
    const Wide before = mass_before(key, s.list);
    if (mine && before < rest && rest <= before + weight) s.cut = key;
    __syncthreads();
    return s.cut;
  }
}

}  // namespace gsa::cuda
