// Products of many tokens: bound by arithmetic. Included once per SIMD target.

#if defined(GSA_KERNELS_CPU_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GSA_KERNELS_CPU_PANEL_INL_H_
#undef GSA_KERNELS_CPU_PANEL_INL_H_
#else
#define GSA_KERNELS_CPU_PANEL_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/load-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {

// A panel of weights is widened once and used for a block of tokens, columns in pieces that stay in
// the first cache level; between the pieces the vectors of partial sums wait in memory, so that
// every sum still takes its columns in order. A block of tokens stays in the second cache level
// while all rows pass by.
class Panel {
 public:
  template <class W>
  void run(const Operands& o, int64_t row_begin, int64_t row_end, int64_t tokens) {
    const int64_t most = std::clamp<int64_t>(kBlockFloats / o.cols, kTokens, kMostTokens);
    const int64_t size = most / kTokens * kTokens;
    for (int64_t t = 0; t < tokens; t += size) {
      const int64_t block = std::min(size, tokens - t);
      for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
        const int64_t rows = std::min(kPanelRows, row_end - row);
        for (int64_t c = 0; c < o.cols; c += kColumns) {
          const int64_t count = std::min(kColumns, o.cols - c);
          for (int64_t r = 0; r < rows; ++r) {
            W::expand(o, row + r, c, count, weights_ + r * kColumns);
          }
          piece(o, {row, rows, t, block, c, count});
        }
      }
    }
  }

 private:
  // Sizes by measurement, with a first cache level of 48 KiB and a second of 2 MiB: a piece of a
  // panel takes 16 KiB, of a tile's tokens 12 KiB, a block of tokens at most 1.1 MiB.
  static constexpr int64_t kPanelRows = 8, kColumns = 512, kMostTokens = 96;
  static constexpr int64_t kBlockFloats = 288 << 10;

  struct Piece {
    int64_t row, rows, token, tokens, column, columns;
  };

  void piece(const Operands& o, const Piece& p) {
    float* kept = sums_;
    int64_t t = 0;
    for (; t + kTokens <= p.tokens; t += kTokens) kept = all_rows<kTokens>(o, p, t, kept);
    rest<kTokens - 1>(o, p, t, kept);
  }

  // The last tokens of a block, fewer than make a tile.
  template <int TOKENS>
  void rest(const Operands& o, const Piece& p, int64_t t, float* kept) {
    if constexpr (TOKENS > 0) {
      if (p.tokens - t == TOKENS) {
        all_rows<TOKENS>(o, p, t, kept);
      } else {
        rest<TOKENS - 1>(o, p, t, kept);
      }
    }
  }

  // Returns where the next tile's partial sums are kept.
  template <int TOKENS>
  HWY_NOINLINE float* all_rows(const Operands& o, const Piece& p, int64_t t, float* kept) {
    int64_t r = 0;
    for (; r + kRows <= p.rows; r += kRows) {
      tile<kRows, TOKENS>(o, p, r, t, kept);
      kept += kRows * TOKENS * kLanes;
    }
    for (; r < p.rows; ++r) {
      tile<1, TOKENS>(o, p, r, t, kept);
      kept += TOKENS * kLanes;
    }
    return kept;
  }

  template <int ROWS, int TOKENS>
  HWY_INLINE void tile(const Operands& o, const Piece& p, int64_t row, int64_t token, float* kept) {
    const float* w = weights_ + row * kColumns;
    const float* x = o.x + (p.token + token) * o.x_stride + p.column;
    Vec sums[ROWS][TOKENS];
    if (p.column == 0) {
      clear(sums);
    } else {
      HWY_UNROLL(8)
      for (int r = 0; r < ROWS; ++r) {
        HWY_UNROLL(8)
        for (int t = 0; t < TOKENS; ++t) {
          sums[r][t] = hn::Load(kF, kept + (r * TOKENS + t) * kLanes);
        }
      }
    }
    int64_t c = 0;
    for (; c + kLanes <= p.columns; c += kLanes) {
      Vec in[TOKENS];
      HWY_UNROLL(8)
      for (int t = 0; t < TOKENS; ++t) in[t] = hn::LoadU(kF, x + t * o.x_stride + c);
      HWY_UNROLL(8)
      for (int r = 0; r < ROWS; ++r) {
        const Vec weight = hn::Load(kF, w + r * kColumns + c);
        HWY_UNROLL(8)
        for (int t = 0; t < TOKENS; ++t) sums[r][t] = hn::MulAdd(weight, in[t], sums[r][t]);
      }
    }
    if (const int64_t rest = p.columns - c; rest > 0) {
      HWY_UNROLL(8)
      for (int t = 0; t < TOKENS; ++t) {
        const Vec in = load_f32_tail(kF, x + t * o.x_stride + c, rest);
        HWY_UNROLL(8)
        for (int r = 0; r < ROWS; ++r) {
          sums[r][t] = hn::MulAdd(hn::Load(kF, w + r * kColumns + c), in, sums[r][t]);
        }
      }
    }
    if (p.column + p.columns == o.cols) {
      finish(o, p.row + row, p.token + token, sums);
    } else {
      HWY_UNROLL(8)
      for (int r = 0; r < ROWS; ++r) {
        HWY_UNROLL(8)
        for (int t = 0; t < TOKENS; ++t) {
          hn::Store(sums[r][t], kF, kept + (r * TOKENS + t) * kLanes);
        }
      }
    }
  }

  HWY_ALIGN float weights_[kPanelRows * kColumns];
  HWY_ALIGN float sums_[kPanelRows * kMostTokens * kLanes];
};

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
