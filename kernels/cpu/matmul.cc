#include "kernels/cpu/matmul.h"

#include <algorithm>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "kernels/cpu/load-inl.h"
#include "kernels/cpu/panel-inl.h"
#include "kernels/cpu/quantized-inl.h"
#include "kernels/cpu/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {

// A register tile: ROWS rows of the weight by TOKENS tokens, one vector of partial sums for each.
// The weights at p, of which a row's next are asked for a page ahead: where the processor's own
// prefetching, which stops at the borders of pages, has just begun.
constexpr int64_t kAhead = 4096;

template <typename T>
HWY_INLINE const T* soon_more(const T* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, 0, 3);
  return p;
}

template <typename T>
struct Dense {
  static constexpr int kRowsOfOne = kRows;

  template <int ROWS, int TOKENS>
  static HWY_INLINE void tile(const Operands& o, int64_t row, int64_t token) {
    const T* w = reinterpret_cast<const T*>(o.row(row));
    const int64_t step = o.step * o.cols;
    const float* x = o.x + token * o.x_stride;
    Vec sums[ROWS][TOKENS];
    clear(sums);
    int64_t c = 0;
    for (; c + kLanes <= o.cols; c += kLanes) {
      Vec in[TOKENS];
      HWY_UNROLL(8)
      for (int t = 0; t < TOKENS; ++t) in[t] = hn::LoadU(kF, x + t * o.x_stride + c);
      HWY_UNROLL(8)
      for (int r = 0; r < ROWS; ++r) {
        const Vec weight = load_f32(kF, soon_more(w + r * step + c));
        HWY_UNROLL(8)
        for (int t = 0; t < TOKENS; ++t) sums[r][t] = hn::MulAdd(weight, in[t], sums[r][t]);
      }
    }
    if (const int64_t rest = o.cols - c; rest > 0) {
      Vec in[TOKENS];
      for (int t = 0; t < TOKENS; ++t) in[t] = load_f32_tail(kF, x + t * o.x_stride + c, rest);
      for (int r = 0; r < ROWS; ++r) {
        const Vec weight = load_f32_tail(kF, w + r * step + c, rest);
        for (int t = 0; t < TOKENS; ++t) sums[r][t] = hn::MulAdd(weight, in[t], sums[r][t]);
      }
    }
    finish(o, row, token, sums);
  }

  // Columns [begin, begin + count) of a row as floats, zeros behind them up to whole vectors.
  static HWY_INLINE void expand(const Operands& o, int64_t row, int64_t begin, int64_t count,
                                float* to) {
    const T* w = reinterpret_cast<const T*>(o.row(row)) + begin;
    int64_t c = 0;
    for (; c + kLanes <= count; c += kLanes) hn::StoreU(load_f32(kF, w + c), kF, to + c);
    if (c < count) hn::StoreU(load_f32_tail(kF, w + c, count - c), kF, to + c);
  }
};

template <class Group>
struct Quantized {
  static constexpr int64_t kGroup = QuantizedRow::kGroup;
  static constexpr int64_t kGroupBytes = QuantizedRow::group_bytes(Group::kType);
  static constexpr int kVectors = kGroupVectors<D>;
  // A group with its share of the scales and minima, and the groups that have a cache line at most.
  static constexpr int64_t kShare = kGroupBytes + (Group::kType == DType::kQ4 ? 4 : 2);
  static constexpr int kTogether = Group::kType == DType::kQ4 ? 2 : 1;
  // More rows: fewer ends of tiles, at which no prefetch is under way.
  static constexpr int kRowsOfOne = kMostRows;

  template <int ROWS, int TOKENS>
  static HWY_INLINE void tile(const Operands& o, int64_t row, int64_t token) {
    const uint8_t* w = o.row(row);
    const int64_t step = o.step * o.row_bytes;
    const float* x = o.x + token * o.x_stride;
    const int64_t groups = QuantizedRow::groups(o.cols), whole = o.cols / kGroup;
    GroupScales scales[ROWS];
    Vec sums[ROWS][TOKENS];
    clear(sums);
    for (int64_t first = 0; first < groups; first += GroupScales::kMost) {
      const int64_t end = std::min(first + GroupScales::kMost, groups);
      const int64_t end_of_whole = std::min(end, whole);
      for (int r = 0; r < ROWS; ++r) {
        scales[r].load(kF, Group::kType, w + r * step, o.cols, first, end - first);
      }
      const auto add = [&](int64_t g) HWY_ATTR {
        Vec in[TOKENS][kVectors];
        HWY_UNROLL(8)
        for (int t = 0; t < TOKENS; ++t) {
          for (int v = 0; v < kVectors; ++v) {
            in[t][v] = hn::LoadU(kF, x + t * o.x_stride + g * kGroup + v * kLanes);
          }
        }
        HWY_UNROLL(8)
        for (int r = 0; r < ROWS; ++r) {
          add_group(group(w + r * step + g * kGroupBytes, scales[r], g - first), in, sums[r],
                    kVectors);
        }
      };
      int64_t g = first;
      for (; g + kTogether <= end_of_whole; g += kTogether) {
        HWY_UNROLL(8)
        for (int r = 0; r < ROWS; ++r) ask_for_next_row(o, w + r * step, g);
        HWY_UNROLL(2)
        for (int i = 0; i < kTogether; ++i) add(g + i);
      }
      for (; g < end_of_whole; ++g) add(g);
      if (end > whole) {
        const int64_t rest = o.cols - whole * kGroup;
        Vec in[TOKENS][kVectors];
        for (int t = 0; t < TOKENS; ++t)
          load_rest(x + t * o.x_stride + whole * kGroup, rest, in[t]);
        for (int r = 0; r < ROWS; ++r) {
          add_group(group(w + r * step + whole * kGroupBytes, scales[r], whole - first), in,
                    sums[r], static_cast<int>((rest + kLanes - 1) / kLanes));
        }
      }
    }
    finish(o, row, token, sums);
  }

  // REQUIRES: begin is a multiple of 32. Whole groups are written.
  static HWY_INLINE void expand(const Operands& o, int64_t row, int64_t begin, int64_t count,
                                float* to) {
    const int64_t first = begin / kGroup, groups = QuantizedRow::groups(count);
    GroupScales scales;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t i = g % GroupScales::kMost;
      if (i == 0) {
        scales.load(kF, Group::kType, o.row(row), o.cols, first + g,
                    std::min(GroupScales::kMost, groups - g));
      }
      const Group weights = group(o.row(row) + (first + g) * kGroupBytes, scales, i);
      for (int v = 0; v < kVectors; ++v) {
        hn::StoreU(weights.vector(v), kF, to + g * kGroup + v * kLanes);
      }
    }
  }

 private:
  // The same share of the row behind `row`, which its stream reads next. A whole row ahead, since
  // a row's scales stand at its end and are the first to be read.
  static HWY_INLINE void ask_for_next_row(const Operands& o, const uint8_t* row, int64_t g) {
    __builtin_prefetch(row + o.row_bytes + g * kShare, 0, 3);
  }

  static HWY_INLINE Group group(const uint8_t* integers, const GroupScales& scales, int64_t i) {
    return Group(kF, integers, scales.scale[i], scales.minimum[i]);
  }

  template <int TOKENS>
  static HWY_INLINE void add_group(const Group& group, const Vec (&in)[TOKENS][kVectors],
                                   Vec (&sums)[TOKENS], int vectors) {
    for (int v = 0; v < vectors; ++v) {
      const Vec weight = group.vector(v);
      HWY_UNROLL(8)
      for (int t = 0; t < TOKENS; ++t) sums[t] = hn::MulAdd(weight, in[t][v], sums[t]);
    }
  }

  static HWY_INLINE void load_rest(const float* x, int64_t rest, Vec (&in)[kVectors]) {
    for (int v = 0; v < kVectors; ++v) {
      const int64_t n = std::clamp<int64_t>(rest - v * kLanes, 0, kLanes);
      in[v] = load_f32_tail(kF, x + v * kLanes, n);
    }
  }
};

// tile<ROWS>(operands, row) for all rows. The rows of a tile lie far apart, so that each goes on
// where the tile before left it: a few long streams through memory are read faster than many that
// end after a page.
template <int ROWS, class Tile>
HWY_INLINE void in_streams(const Operands& o, int64_t row_begin, int64_t row_end,
                           const Tile& tile) {
  Operands streams = o;
  streams.step = (row_end - row_begin) / ROWS;
  for (int64_t i = 0; i < streams.step; ++i) {
    tile.template operator()<ROWS>(streams, row_begin + i);
  }
  for (int64_t row = row_begin + streams.step * ROWS; row < row_end; ++row) {
    tile.template operator()<1>(o, row);
  }
}

// Few tokens: bound by reading the weights, which go from memory into the sums.
template <class W>
void few_tokens(const Operands& o, int64_t row_begin, int64_t row_end, int64_t tokens) {
  if (tokens == 1) {
    in_streams<W::kRowsOfOne>(o, row_begin, row_end,
                              [&]<int ROWS>(const Operands& o, int64_t row)
                                  HWY_ATTR { W::template tile<ROWS, 1>(o, row, 0); });
    return;
  }
  in_streams<kRows>(o, row_begin, row_end, [&]<int ROWS>(const Operands& o, int64_t row) HWY_ATTR {
    int64_t t = 0;
    for (; t + 4 <= tokens; t += 4) W::template tile<ROWS, 4>(o, row, t);
    for (; t + 2 <= tokens; t += 2) W::template tile<ROWS, 2>(o, row, t);
    if (t < tokens) W::template tile<ROWS, 1>(o, row, t);
  });
}

// From here on widening the weights first is worth its while.
constexpr int64_t kManyTokens = 12;

template <class W>
void rows_of(const MatmulRows& args) {
  const int64_t cols = args.weight.shape[1];
  const auto bytes = static_cast<int64_t>(row_bytes(args.weight.dtype, cols));
  const Operands o{.x = args.x,
                   .x_stride = args.x_stride,
                   .weight = static_cast<const uint8_t*>(args.weight.data),
                   .row_bytes = bytes,
                   .cols = cols,
                   .y = args.y,
                   .y_stride = args.y_stride,
                   .accumulate = args.accumulate};
  if (args.tokens < kManyTokens) {
    few_tokens<W>(o, args.row_begin, args.row_end, args.tokens);
  } else {
    Panel panel;
    panel.run<W>(o, args.row_begin, args.row_end, args.tokens);
  }
}

void MatmulRowsTarget(const MatmulRows& args) {
  switch (args.weight.dtype) {
    case DType::kF32:
      return rows_of<Dense<float>>(args);
    case DType::kF16:
      return rows_of<Dense<F16>>(args);
    case DType::kBF16:
      return rows_of<Dense<BF16>>(args);
    case DType::kQ8:
      return rows_of<Quantized<Q8Group<D>>>(args);
    case DType::kQ4:
      return rows_of<Quantized<Q4Group<D>>>(args);
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
