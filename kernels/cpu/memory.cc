#include "kernels/cpu/memory.h"

#include <algorithm>
#include <cassert>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/memory.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include "kernels/cpu/load-inl.h"
#include "kernels/half.h"

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Stores x rounded to nearest even, as kernels/half.h does; returns what is stored.
template <class D>
HWY_INLINE hn::Vec<D> store_rounded(D d, hn::Vec<D> x, float* p) {
  hn::StoreU(x, d, p);
  return x;
}

template <class D>
HWY_INLINE hn::Vec<D> store_rounded(D d, hn::Vec<D> x, BF16* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), odd);
  const auto nan = hn::RebindMask(du, hn::IsNaN(x));
  const auto kept = hn::IfThenElse(nan, hn::Or(bits, hn::Set(du, 0x400000)), rounded);
  hn::StoreU(hn::TruncateTo(d16, hn::ShiftRight<16>(kept)), d16, reinterpret_cast<uint16_t*>(p));
  return hn::BitCast(d, hn::And(kept, hn::Set(du, 0xffff0000u)));
}

template <class D>
HWY_INLINE hn::Vec<D> store_rounded(D d, hn::Vec<D> x, F16* p) {
#if HWY_TARGET <= HWY_AVX2 || HWY_ARCH_ARM_A64
  const hn::Rebind<hwy::float16_t, D> d16;
  hn::StoreU(hn::DemoteTo(d16, x), d16, reinterpret_cast<hwy::float16_t*>(p));
#else  // Highway emulates the conversion and truncates.
  HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(x, d, lanes);
  for (size_t i = 0; i < hn::Lanes(d); ++i) p[i].bits = f32_to_f16(lanes[i]);
#endif
  return load_f32(d, p);
}

// One token's operands, at the block's first row and the strip's first column; a memory of S.
template <typename S>
struct Token {
  S* memory;
  int64_t stride;
  int64_t rows;
  const float* keep;
  const float* row_write;
  const float* column_write;
  const float* query;
  int64_t query_stride;
  float* sums;
  int64_t sums_stride;
};

// A strip of VECTORS vectors of columns, read for HEADS query heads; written first if WRITE.
template <int VECTORS, int HEADS, bool WRITE, bool KEEP_BY_ROW, class D, typename S>
HWY_INLINE void strip(D d, const Token<S>& token) {
  using Vec = hn::Vec<D>;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Vec sums[HEADS][VECTORS], keep[VECTORS], write[VECTORS];
  for (int v = 0; v < VECTORS; ++v) {
    for (int h = 0; h < HEADS; ++h) {
      sums[h][v] = hn::LoadU(d, token.sums + h * token.sums_stride + v * lanes);
    }
    if (WRITE) {
      write[v] = hn::LoadU(d, token.column_write + v * lanes);
      keep[v] = KEEP_BY_ROW ? hn::Zero(d) : hn::LoadU(d, token.keep + v * lanes);
    }
  }
  for (int64_t r = 0; r < token.rows; ++r) {
    S* row = token.memory + r * token.stride;
    Vec row_keep = hn::Zero(d), row_write = hn::Zero(d);
    if (WRITE) row_write = hn::Set(d, token.row_write[r]);
    if (WRITE && KEEP_BY_ROW) row_keep = hn::Set(d, token.keep[r]);
    HWY_UNROLL(4)
    for (int v = 0; v < VECTORS; ++v) {
      Vec memory = load_f32(d, row + v * lanes);
      if (WRITE) {
        memory = hn::MulAdd(row_write, write[v], hn::Mul(memory, KEEP_BY_ROW ? row_keep : keep[v]));
        memory = store_rounded(d, memory, row + v * lanes);
      }
      HWY_UNROLL(4)
      for (int h = 0; h < HEADS; ++h) {
        const Vec query = hn::Set(d, token.query[h * token.query_stride + r]);
        sums[h][v] = hn::MulAdd(query, memory, sums[h][v]);
      }
    }
  }
  for (int v = 0; v < VECTORS; ++v) {
    for (int h = 0; h < HEADS; ++h) {
      hn::StoreU(sums[h][v], d, token.sums + h * token.sums_stride + v * lanes);
    }
  }
}

// All query heads over one strip: the first few write the memory, the others find it written.
template <int VECTORS, bool KEEP_BY_ROW, class D, typename S>
HWY_INLINE void all_heads(D d, Token<S> token, int64_t heads) {
  int64_t h = 0;
  const auto advance = [&](int64_t by) {
    h += by;
    token.query += by * token.query_stride;
    token.sums += by * token.sums_stride;
  };
  if (heads >= 4) {
    strip<VECTORS, 4, true, KEEP_BY_ROW>(d, token);
    advance(4);
  } else {
    strip<VECTORS, 1, true, KEEP_BY_ROW>(d, token);
    advance(1);
  }
  while (h + 4 <= heads) {
    strip<VECTORS, 4, false, KEEP_BY_ROW>(d, token);
    advance(4);
  }
  while (h < heads) {
    strip<VECTORS, 1, false, KEEP_BY_ROW>(d, token);
    advance(1);
  }
}

template <typename S, int VECTORS, bool KEEP_BY_ROW, class D>
HWY_INLINE void all_tokens(D d, const MemoryBlock& b, int64_t row_begin, int64_t row_end,
                           int64_t column) {
  for (int64_t t = 0; t < b.tokens; ++t) {
    const Token<S> token{
        .memory = static_cast<S*>(b.memory) + row_begin * b.stride + column,
        .stride = b.stride,
        .rows = row_end - row_begin,
        .keep = b.keep + t * b.keep_step + (KEEP_BY_ROW ? row_begin : column),
        .row_write = b.row_write + t * b.row_write_step + row_begin,
        .column_write = b.column_write + t * b.column_write_step + column,
        .query = b.query + t * b.query_step + row_begin,
        .query_stride = b.query_stride,
        .sums = b.sums + t * b.sums_step + column,
        .sums_stride = b.sums_stride,
    };
    all_heads<VECTORS, KEEP_BY_ROW>(d, token, b.heads);
  }
}

// Tiles of rows x columns that stay in the first cache level while all tokens pass by.
template <typename S, bool KEEP_BY_ROW>
void blocks(const MemoryBlock& b) {
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
  constexpr int kVectors = 4;
#else
  constexpr int kVectors = 2;
#endif
  constexpr int64_t kTileRows = 64;
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> scalar;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t row = b.row_begin; row < b.row_end; row += kTileRows) {
    const int64_t row_end = std::min(row + kTileRows, b.row_end);
    int64_t c = b.column_begin;
    for (; c + kVectors * lanes <= b.column_end; c += kVectors * lanes) {
      all_tokens<S, kVectors, KEEP_BY_ROW>(d, b, row, row_end, c);
    }
    for (; c + lanes <= b.column_end; c += lanes) {
      all_tokens<S, 1, KEEP_BY_ROW>(d, b, row, row_end, c);
    }
    for (; c < b.column_end; ++c) all_tokens<S, 1, KEEP_BY_ROW>(scalar, b, row, row_end, c);
  }
}

template <typename S>
void write_and_read_as(const MemoryBlock& block) {
  block.keep_by_row ? blocks<S, true>(block) : blocks<S, false>(block);
}

void WriteAndRead(const MemoryBlock& block) {
  switch (block.type) {
    case DType::kF32:
      return write_and_read_as<float>(block);
    case DType::kF16:
      return write_and_read_as<F16>(block);
    default:
      assert(block.type == DType::kBF16);
      return write_and_read_as<BF16>(block);
  }
}

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gsa::cpu {

HWY_EXPORT(WriteAndRead);

void write_and_read(const MemoryBlock& block) { HWY_DYNAMIC_DISPATCH(WriteAndRead)(block); }

}  // namespace gsa::cpu
#endif  // HWY_ONCE
