// What all products share: their operands, the size of a register tile, and how its sums end.
// Included once per SIMD target.

#if defined(GSA_KERNELS_CPU_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GSA_KERNELS_CPU_TILE_INL_H_
#undef GSA_KERNELS_CPU_TILE_INL_H_
#else
#define GSA_KERNELS_CPU_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

const hn::ScalableTag<float> kF;
using D = decltype(kF);
using Vec = hn::Vec<D>;
constexpr int64_t kLanes = hn::MaxLanes(kF);

// A register tile is kRows rows of the weight by up to kTokens tokens, a vector of partial sums for
// each: as many as the registers hold (32 with AVX-512 and NEON, 16 otherwise).
constexpr int kRows = 4;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kTokens = 6;
constexpr int kMostRows = 8;  // of a tile of one token
#else
constexpr int kTokens = 3;
constexpr int kMostRows = kRows;
#endif

struct Operands {
  const float* x;
  int64_t x_stride;
  const uint8_t* weight;
  int64_t row_bytes;
  int64_t cols;
  float* y;
  int64_t y_stride;
  bool accumulate;
  int64_t step = 1;  // from one row of a tile to the next

  const uint8_t* row(int64_t r) const { return weight + r * row_bytes; }
};

template <int ROWS, int TOKENS>
HWY_INLINE void clear(Vec (&sums)[ROWS][TOKENS]) {
  HWY_UNROLL(8)
  for (int r = 0; r < ROWS; ++r) {
    HWY_UNROLL(8)
    for (int t = 0; t < TOKENS; ++t) sums[r][t] = hn::Zero(kF);
  }
}

#if HWY_TARGET != HWY_SCALAR
// Adds the blocks of four lanes of a vector, halving it.
template <class D>
HWY_INLINE auto add_blocks(D, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(D()) == 4) {
    return v;
  } else {
    const hn::Half<D> half;
    return add_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}
#endif

// The sum over the lanes of each of four vectors. The additions come in the same order for each:
// lanes 0 and 2 of every block of four, lanes 1 and 3, both, then the blocks.
HWY_INLINE void sum_each(Vec a, Vec b, Vec c, Vec d, float* sums) {
#if HWY_TARGET == HWY_SCALAR
  const Vec all[] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) sums[i] = hn::GetLane(all[i]);
#else
  const hn::Repartition<uint64_t, D> pairs;
  const auto ab = hn::Add(hn::InterleaveLower(kF, a, b), hn::InterleaveUpper(kF, a, b));
  const auto cd = hn::Add(hn::InterleaveLower(kF, c, d), hn::InterleaveUpper(kF, c, d));
  const auto lower = hn::InterleaveLower(pairs, hn::BitCast(pairs, ab), hn::BitCast(pairs, cd));
  const auto upper = hn::InterleaveUpper(pairs, hn::BitCast(pairs, ab), hn::BitCast(pairs, cd));
  const auto each = add_blocks(kF, hn::Add(hn::BitCast(kF, lower), hn::BitCast(kF, upper)));
  hn::StoreU(each, hn::CappedTag<float, 4>(), sums);
#endif
}

// y (+)= the sums, each over its lanes. Every path ends here, so that all add in one order.
template <int ROWS, int TOKENS>
HWY_INLINE void finish(const Operands& o, int64_t row, int64_t token,
                       const Vec (&sums)[ROWS][TOKENS]) {
  static_assert(ROWS % kRows == 0 || ROWS == 1);
  constexpr int kTogether = std::min(ROWS, kRows);
  HWY_UNROLL(8)
  for (int t = 0; t < TOKENS; ++t) {
    float* y = o.y + (token + t) * o.y_stride + row;
    HWY_UNROLL(2)
    for (int first = 0; first < ROWS; first += kRows) {
      float sum[kRows];
      sum_each(sums[first][t], sums[ROWS > 1 ? first + 1 : 0][t], sums[ROWS > 1 ? first + 2 : 0][t],
               sums[ROWS > 1 ? first + 3 : 0][t], sum);
      HWY_UNROLL(8)
      for (int r = 0; r < kTogether; ++r) {
        float& to = y[(first + r) * o.step];
        to = o.accumulate ? to + sum[r] : sum[r];
      }
    }
  }
}

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
