// Device code shared by drawing and scoring: one block of kRowThreads works on one row of logits.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/sample_rows.cuh"

namespace gsa::cuda {

constexpr int kRowThreads = 1024;
constexpr int kRowWarps = kRowThreads / 32;
// Candidates that a block can hold and rank, one per thread.
constexpr int kCandidates = kRowThreads;

using Wide = unsigned long long;

// Combines the values of the first `warps` warps, for all their threads; the others have exited.
// `scratch` holds one value per warp. T{} must change nothing.
template <typename T, typename Combine>
__device__ __forceinline__ T block_reduce(T x, T* scratch, int warps, Combine combine) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  __syncthreads();  // the scratch may still be read from the use before
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : T{};
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    x = combine(x, __shfl_xor_sync(kAllLanes, x, offset));
  }
  return x;
}

template <typename T>
__device__ __forceinline__ T block_total(T x, T* scratch, int warps = kRowWarps) {
  return block_reduce(x, scratch, warps, [](T a, T b) { return a + b; });
}

template <typename T>
__device__ __forceinline__ T block_largest(T x, T* scratch, int warps = kRowWarps) {
  return block_reduce(x, scratch, warps, [](T a, T b) { return a > b ? a : b; });
}

// Sum of the lanes up to and including this one.
__device__ __forceinline__ Wide warp_prefix(Wide x) {
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const Wide y = __shfl_up_sync(kAllLanes, x, offset);
    if (threadIdx.x % 32 >= offset) x += y;
  }
  return x;
}

struct Prefix {
  Wide before;  // sum of the threads before this one
  Wide total;
};

__device__ __forceinline__ Prefix block_prefix(Wide x, Wide* scratch) {
  const Wide in_warp = warp_prefix(x);
  __syncthreads();
  if (threadIdx.x % 32 == 31) scratch[threadIdx.x / 32] = in_warp;
  __syncthreads();
  const Wide warps = warp_prefix(scratch[threadIdx.x % 32]);
  const int warp = threadIdx.x / 32;
  const Wide upto = __shfl_sync(kAllLanes, warps, warp);
  const Wide total = __shfl_sync(kAllLanes, warps, 31);
  return {upto - __shfl_sync(kAllLanes, in_warp, 31) + in_warp - x, total};
}

// A probability is an integer in units of 2^-kMassBits of the likeliest token's: sums of up to
// 2^kTokenBits of them are exact in 64 bits, and do not depend on the order of the additions.
constexpr int kMassBits = 43;
constexpr double kMaxDistance = 31;  // masses behind it round to 0

// exp(-x) as a mass, within one unit; 0 where x is not a number. Without branches, so that a thread
// works on several at a time. REQUIRES: x >= 0 or not a number.
__device__ __forceinline__ Wide mass_at(double x) {
  x = fmin(x, kMaxDistance);
  // exp(-x) = 2^-whole exp(rest) with |rest| <= ln(2)/2, by 12 terms of the series: to 7e-15.
  constexpr double kRound = 0x1.8p52;  // adding it leaves the nearest integer in the low bits
  constexpr double kLn2 = 0.693147180559945309417;
  const double shifted = fma(x, 1 / kLn2, kRound);
  const double rest = fma(shifted - kRound, kLn2, -x);
  double sum = 1.0 / 39916800;
  constexpr double kTerms[] = {
      1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
      1.0 / 24,      1.0 / 6,      1.0 / 2,     1,          1};
#pragma unroll
  for (double term : kTerms) sum = fma(sum, rest, term);
  const int exponent = kMassBits - __double2loint(shifted);
  const double mass = __hiloint2double(__double2hiint(sum) + (exponent << 20), __double2loint(sum));
  return __double_as_longlong(mass + 0x1p52) & ((Wide{1} << 52) - 1);
}

// A row of logits. Its memory may be written by the same block, so it is read by plain loads.
struct Row {
  const float* logits;
  int N;

  __device__ bool aligned() const { return N % 4 == 0; }
  // The first token that thread `rank` sees in for_each().
  __device__ int first(int rank) const { return aligned() ? 4 * rank : rank; }

  // visit(logit, token) for the tokens in [begin, end), dealt out to `width` threads of which this
  // is number `rank`; each sees ascending tokens. kBatch loads of 16 bytes are under way at a time.
  // REQUIRES: begin a multiple of 4, and the row aligned to 16 bytes where N is a multiple of 4.
  template <int kBatch, typename Visit>
  __device__ __forceinline__ void for_each(int begin, int end, int rank, int width,
                                           Visit visit) const {
    if (!aligned()) {
      for (int i = begin + rank; i < end; i += width) visit(logits[i], i);
      return;
    }
    for_each_vector<kBatch>(begin / 4, end / 4, rank, width, [&](float4 x, int v) {
      visit(x.x, 4 * v);
      visit(x.y, 4 * v + 1);
      visit(x.z, 4 * v + 2);
      visit(x.w, 4 * v + 3);
    });
  }

  // The same for four tokens at a time, 4v to 4v + 3. REQUIRES: aligned().
  template <int kBatch, typename Visit>
  __device__ __forceinline__ void for_each_vector(int begin, int end, int rank, int width,
                                                  Visit visit) const {
    const float4* vectors = reinterpret_cast<const float4*>(logits);
    for (int v = begin + rank; v < end; v += kBatch * width) {
      float4 x[kBatch];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (v + j * width < end) x[j] = vectors[v + j * width];
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (v + j * width < end) visit(x[j], v + j * width);
      }
    }
  }

  template <int kBatch, typename Visit>
  __device__ __forceinline__ void for_each(Visit visit) const {
    for_each<kBatch>(0, N, threadIdx.x, kRowThreads, visit);
  }
};

// Larger for larger logits, never 0, the same for both zeros.
__device__ __forceinline__ uint32_t order_of(float logit) {
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(uint32_t order) {
  return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

// What a first look at a row tells.
struct Look {
  float largest;   // of the whole row
  float least;     // finite logit of the whole row
  int32_t token;   // of the largest, the lowest
  uint32_t order;  // of the largest that this thread has seen; 0: it has seen none
  bool nan;        // in the whole row
};

// The largest order and, among the threads that hold it, the lowest token; as one number.
__device__ __forceinline__ Wide warp_best(uint32_t order, uint32_t token) {
  const uint32_t best = __reduce_max_sync(kAllLanes, order);
  return Wide{best} << 32 | __reduce_min_sync(kAllLanes, order == best ? token : ~0u);
}

struct LookShared {
  Wide best[kRowWarps];
  uint32_t least[kRowWarps];
};

__device__ __forceinline__ Look look_at(const Row& row, LookShared& s) {
  float largest = -infinity(), least = infinity();
  uint32_t token = row.first(threadIdx.x);
  bool nan = false;
  const bool any = token < row.N;
  row.for_each<4>([&](float logit, int i) {
    if (logit > largest) {
      largest = logit;
      token = i;
    }
    least = fminf(least, logit == -infinity() ? least : logit);
    nan |= isnan(logit);
  });
  Look look;
  look.order = any ? order_of(largest) : 0;
  const int lane = threadIdx.x % 32;
  const Wide best_of_warp = warp_best(look.order, token);
  // No logit has the order 0: it stands for what is not a number.
  const uint32_t least_of_warp = __reduce_min_sync(kAllLanes, nan ? 0 : order_of(least));
  if (lane == 0) {
    s.best[threadIdx.x / 32] = best_of_warp;
    s.least[threadIdx.x / 32] = least_of_warp;
  }
  __syncthreads();
  const Wide best =
      warp_best(static_cast<uint32_t>(s.best[lane] >> 32), static_cast<uint32_t>(s.best[lane]));
  const uint32_t low = __reduce_min_sync(kAllLanes, s.least[lane]);
  look.token = static_cast<int32_t>(static_cast<uint32_t>(best));
  look.largest = logit_of(static_cast<uint32_t>(best >> 32));
  look.least = logit_of(low);
  look.nan = low == 0;
  return look;
}

// A bound that the `count` largest logits of the row reach: the count-th largest of the threads'
// largest. 0, which every logit reaches, where fewer threads have seen a logit.
// REQUIRES: 1 <= count <= kRowThreads.
__device__ __forceinline__ uint32_t bound_of_largest(uint32_t order, int count) {
  uint32_t bound = 0;
  for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
    const int reached = __syncthreads_count(order >= (bound | bit));
    if (reached >= count) bound |= bit;
    if (reached == count) break;
  }
  return bound;
}

}  // namespace gsa::cuda
