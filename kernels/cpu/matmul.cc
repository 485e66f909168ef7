#include "kernels/cpu/matmul.h"

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "kernels/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kF;
using Vec = hn::Vec<decltype(kF)>;

template <typename T>
struct Operands {
  const float* x;
  int64_t x_stride;
  const T* weight;
  int64_t cols;
  float* y;
  int64_t y_stride;
  bool accumulate;
};

// A register tile: ROWS rows of the weight by TOKENS tokens, one vector of partial sums for each.
template <int ROWS, int TOKENS, typename T>
HWY_INLINE void tile(const Operands<T>& o, int64_t row, int64_t token) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kF));
  const T* w = o.weight + row * o.cols;
  const float* x = o.x + token * o.x_stride;
  Vec sums[ROWS][TOKENS];
  for (auto& row_sums : sums) {
    for (Vec& sum : row_sums) sum = hn::Zero(kF);
  }
  int64_t c = 0;
  for (; c + lanes <= o.cols; c += lanes) {
    Vec in[TOKENS];
    HWY_UNROLL(8)
    for (int t = 0; t < TOKENS; ++t) in[t] = hn::LoadU(kF, x + t * o.x_stride + c);
    HWY_UNROLL(8)
    for (int r = 0; r < ROWS; ++r) {
      const Vec weight = load_f32(kF, w + r * o.cols + c);
      HWY_UNROLL(8)
      for (int t = 0; t < TOKENS; ++t) sums[r][t] = hn::MulAdd(weight, in[t], sums[r][t]);
    }
  }
  if (const int64_t rest = o.cols - c; rest > 0) {
    Vec in[TOKENS];
    for (int t = 0; t < TOKENS; ++t) in[t] = load_f32_tail(kF, x + t * o.x_stride + c, rest);
    for (int r = 0; r < ROWS; ++r) {
      const Vec weight = load_f32_tail(kF, w + r * o.cols + c, rest);
      for (int t = 0; t < TOKENS; ++t) sums[r][t] = hn::MulAdd(weight, in[t], sums[r][t]);
    }
  }
  for (int t = 0; t < TOKENS; ++t) {
    float* y = o.y + (token + t) * o.y_stride + row;
    for (int r = 0; r < ROWS; ++r) {
      const float sum = hn::GetLane(hn::SumOfLanes(kF, sums[r][t]));
      y[r] = o.accumulate ? y[r] + sum : sum;
    }
  }
}

// Tokens of a tile: as many sums as the registers hold (32 with AVX-512 and NEON, 16 otherwise).
constexpr int kRows = 4;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kTokens = 6;
#else
constexpr int kTokens = 3;
#endif

template <int ROWS, typename T>
HWY_INLINE void all_tokens(const Operands<T>& o, int64_t row, int64_t begin, int64_t end) {
  int64_t t = begin;
  for (; t + kTokens <= end; t += kTokens) tile<ROWS, kTokens>(o, row, t);
  for (; t + 2 <= end; t += 2) tile<ROWS, 2>(o, row, t);
  if (t < end) tile<ROWS, 1>(o, row, t);
}

template <typename T>
void rows_of(const MatmulRows& args) {
  const Operands<T> o{.x = args.x,
                      .x_stride = args.x_stride,
                      .weight = static_cast<const T*>(args.weight.data),
                      .cols = args.weight.shape[1],
                      .y = args.y,
                      .y_stride = args.y_stride,
                      .accumulate = args.accumulate};
  int64_t row = args.row_begin;
  if (args.tokens == 1) {
    for (; row + 8 <= args.row_end; row += 8) tile<8, 1>(o, row, 0);
  }
  // A few tokens stay in the first cache level while all rows pass by.
  for (int64_t t = 0; t < args.tokens; t += kTokens) {
    const int64_t end = t + kTokens < args.tokens ? t + kTokens : args.tokens;
    int64_t r = row;
    for (; r + kRows <= args.row_end; r += kRows) all_tokens<kRows>(o, r, t, end);
    for (; r < args.row_end; ++r) all_tokens<1>(o, r, t, end);
  }
}

void MatmulRowsTarget(const MatmulRows& args) {
  switch (args.weight.dtype) {
    case DType::kF32:
      return rows_of<float>(args);
    case DType::kF16:
      return rows_of<F16>(args);
    case DType::kBF16:
      return rows_of<BF16>(args);
    default:
      HWY_ABORT("matmul: unsupported weight type");
  }
}

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gsa::cpu {

HWY_EXPORT(MatmulRowsTarget);

void matmul_rows(const MatmulRows& args) { HWY_DYNAMIC_DISPATCH(MatmulRowsTarget)(args); }

}  // namespace gsa::cpu
#endif  // HWY_ONCE
