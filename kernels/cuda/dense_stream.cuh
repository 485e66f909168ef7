// Products of bfloat16 weights with up to four tokens, as a part of a kernel: the blocks of one
// launch may have rows of such a weight or of another one.
#pragma once

#include <algorithm>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/halves.cuh"
#include "kernels/cuda/matvec.cuh"
#include "kernels/cuda/matvec_sums.cuh"

namespace gsa::cuda::dense {

// A warp owns kTiles tiles of 8 rows and a slice of the columns; the warps of
// a block that have the same rows add up their sums at the end. A warp copies pieces of 64 columns,
// a line of memory of each row, into a ring of its own in shared memory, kDepth pieces ahead of
// their use: warps need not wait for each other, and the copies are under way before the
// activations are known.
constexpr int kTiles = kRows / kTileRows;
constexpr int kPiece = 64;  // columns
constexpr int kDepth = 3;
constexpr int kTileVectors = kTileRows * kPiece / 8;                        // of 16 bytes
constexpr size_t kRingBytes = size_t{kDepth} * kTiles * kTileVectors * 16;  // of a warp
constexpr int64_t kActivationBytes = 32 * 1024;

struct Args {
  const float* x;
  const float* norm_weight;
  const __nv_bfloat16* weight;
  float* y;
  int tokens, rows, cols, y_stride;
  int groups;        // of rows in a block; the other factor of its warps is the number of slices
  int slices;        // of the columns
  int panel_pieces;  // of each slice whose activations stand in shared memory at a time
  int panel;         // the same as columns of all slices
  float eps;
  bool normalize, gated, accumulate;
};

__device__ __forceinline__ void mma(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    float (&d)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Activations of a panel of columns in shared memory: two bfloat16 planes whose sum is the value.
// The row pitch leaves neighbouring tokens in different banks.
struct Panel {
  __nv_bfloat16* hi;
  __nv_bfloat16* lo;
  int pitch;

  __device__ Panel(unsigned char* memory, int tokens, int panel)
      : hi(reinterpret_cast<__nv_bfloat16*>(memory)), lo(nullptr), pitch(panel + 32) {
    lo = hi + tokens * pitch;
  }
};

__device__ __forceinline__ int slice_begin(const Args& a, int slice) {
  return a.cols / kPiece * slice / a.slices;
}

// Loads panel `p` of all tokens times the norm's weight, and adds up the squares of the plain
// values: squares[t * kMostWarps + w] is the sum of warp w over all panels.
__device__ __forceinline__ void load_panel(const Args& a, int p, const Panel& panel,
                                           float* squares) {
  const bool whole = a.panel >= a.cols;
  const int width = a.panel_pieces * kPiece;  // of a slice
  const int columns = whole ? a.cols : a.panel;
  float sums[kMatVecTokens] = {};
  for (int c = threadIdx.x * 4; c < columns; c += blockDim.x * 4) {
    int column = c;
    if (!whole) {
      const int slice = c / width;
      column = (slice_begin(a, slice) + p * a.panel_pieces) * kPiece + c - slice * width;
      if (column >= slice_begin(a, slice + 1) * kPiece) continue;
    }
    float4 w = make_float4(1, 1, 1, 1);
    if (a.norm_weight != nullptr) {
      w = __ldg(reinterpret_cast<const float4*>(a.norm_weight + column));
    }
    float4 x[kMatVecTokens];  // all asked for before the first is used
#pragma unroll
    for (int t = 0; t < kMatVecTokens; ++t) {
      if (t >= a.tokens) break;
      x[t] = *reinterpret_cast<const float4*>(a.x + int64_t{t} * a.cols + column);
    }
#pragma unroll
    for (int t = 0; t < kMatVecTokens; ++t) {
      if (t >= a.tokens) break;
      sums[t] += x[t].x * x[t].x + x[t].y * x[t].y + x[t].z * x[t].z + x[t].w * x[t].w;
      const int at = t * panel.pitch + c;
      const float4 v = times(x[t], w);
      store_halves(split_pair(v.x, v.y), split_pair(v.z, v.w), panel.hi + at, panel.lo + at);
    }
  }
  if (a.normalize) keep_squares(sums, a.tokens, p, squares);
}

// A warp's weights on their way through its ring. A lane copies 16 bytes of rows lane / 8 and
// lane / 8 + 4 of each tile; odd rows have the halves of their line swapped, so that the rows that
// are read together lie in different banks.
class Stream {
 public:
  // `row(r)` points to the slice of row r of the warp's 16.
  template <typename Row>
  __device__ Stream(uint4* ring, int pieces, const Row& row) : ring_(ring), left_(pieces) {
    const int lane = threadIdx.x % 32, r = lane / 8, c = lane % 8;
#pragma unroll
    for (int i = 0; i < kParts; ++i) from_[i] = row(r + 4 * i) + c;
    to_ = ring + r * 8 + (c ^ (r % 2 * 4));
    const int g = lane / 4, j = lane % 4;
    at_ = ring + g * 8 + (j ^ (g % 2 * 4));
#pragma unroll
    for (int i = 0; i < kDepth; ++i) ask(i, i);
    advance();
  }

  // Waits for the next piece.
  __device__ __forceinline__ void wait() const {
    copy_wait<kDepth - 1>();
    __syncwarp();
  }
  // This lane's weights of half a piece.
  __device__ __forceinline__ void take(int place, int half, uint4 (&w)[kTiles]) const {
    const uint4* at = half == 0 ? at_ : ring_ + ((at_ - ring_) ^ 4);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) w[t] = at[(place * kTiles + t) * kTileVectors];
  }
  // The piece in the place has been taken: asks for the one that takes its place.
  __device__ __forceinline__ void refill(int place) {
    __syncwarp();
    ask(place, place);
  }
  // All places have been taken once.
  __device__ __forceinline__ void advance() {
#pragma unroll
    for (int i = 0; i < kParts; ++i) from_[i] += kDepth * kLine;
    left_ -= kDepth;
  }

 private:
  static constexpr int kParts = kRows / 4;
  static constexpr int kLine = kPiece / 8;  // vectors of a row in a piece

  __device__ __forceinline__ void ask(int place, int ahead) {
    if (ahead < left_) {
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        copy_async(to_ + place * kTiles * kTileVectors + i * 4 * 8, from_[i] + ahead * kLine);
      }
    }
    copy_commit();
  }

  const uint4* from_[kParts];  // of the piece after those asked for
  uint4* to_;                  // in the first place
  const uint4* ring_;
  const uint4* at_;  // of the first half in the first place
  int left_;         // pieces not yet asked for
};

struct Sums {
  float v[kTiles][4] = {};

  // Adds the products of half a piece: the high halves of the tokens are rows 0 to 7 of a
  // fragment, the low ones rows 8 to 15.
  __device__ __forceinline__ void add(const uint4 (&w)[kTiles], const __nv_bfloat16* hi,
                                      const __nv_bfloat16* lo, int tokens) {
    uint4 h = {}, l = {};
    if (static_cast<int>(threadIdx.x % 32 / 4) < tokens) {
      h = *reinterpret_cast<const uint4*>(hi);
      l = *reinterpret_cast<const uint4*>(lo);
    }
    const uint32_t first[4] = {h.x, l.x, h.y, l.y}, second[4] = {h.z, l.z, h.w, l.w};
#pragma unroll
    for (int t = 0; t < kTiles; ++t) mma(first, w[t].x, w[t].y, v[t]);
#pragma unroll
    for (int t = 0; t < kTiles; ++t) mma(second, w[t].z, w[t].w, v[t]);
  }
};

// Blocks that the rows are divided between where each has one group.
__host__ __device__ inline int blocks_of(const Args& a) { return (a.rows + kRows - 1) / kRows; }

// Block `block` of those that the rows are divided between. `squares` holds kMatVecTokens *
// kMostWarps floats.
__device__ __forceinline__ void run(const Args& a, int block, unsigned char* shared,
                                    float* squares) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warps = blockDim.x / 32;
  const int g = lane / 4, j = lane % 4;
  const int group = warp / a.slices, slice = warp % a.slices;
  const int first_piece = slice_begin(a, slice);
  const int pieces = slice_begin(a, slice + 1) - first_piece;
  grid_release();

  // A gated block's tiles are gate rows and the up rows that belong to them. Rows past the end
  // repeat the last one.
  const int first_row = (block * a.groups + group) * (a.gated ? kTileRows : kRows);
  Stream stream(reinterpret_cast<uint4*>(shared + warp * kRingBytes), pieces, [&](int r) {
    const int row = a.gated ? min(first_row + r % kTileRows, a.rows - 1) + r / kTileRows * a.rows
                            : min(first_row + r, a.rows - 1);
    return reinterpret_cast<const uint4*>(a.weight + int64_t{row} * a.cols + first_piece * kPiece);
  });
  const Panel panel(shared + warps * kRingBytes, a.tokens, a.panel);
  if (a.norm_weight != nullptr) {
    for (int c = threadIdx.x * 32; c < a.cols; c += blockDim.x * 32) prefetch(a.norm_weight + c);
  }
  grid_wait();

  Sums sums;
  const int most_pieces = (a.cols / kPiece + a.slices - 1) / a.slices;
  for (int p = 0; p * a.panel_pieces < most_pieces; ++p) {
    if (p > 0) __syncthreads();
    load_panel(a, p, panel, squares);
    __syncthreads();
    const int column = (a.panel >= a.cols ? first_piece : slice * a.panel_pieces) * kPiece;
    const __nv_bfloat16* hi = panel.hi + g * panel.pitch + column + j * 8;
    const __nv_bfloat16* lo = hi + (panel.lo - panel.hi);
    const int end = min((p + 1) * a.panel_pieces, pieces);
    for (int piece = p * a.panel_pieces; piece < end; piece += kDepth) {
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        if (piece + i >= end) break;
        stream.wait();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = i * kPiece + half * kPiece / 2;
          uint4 w[kTiles];
          stream.take(i, half, w);
          sums.add(w, hi + column, lo + column, a.tokens);
        }
        stream.refill(i);
      }
      hi += kDepth * kPiece;
      lo += kDepth * kPiece;
      stream.advance();
    }
  }

  // The slices meet in shared memory: [warp][token][row of the warp].
  copy_wait<0>();
  __syncthreads();
  float* partial = reinterpret_cast<float*>(shared);
  if (g < a.tokens) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float(&s)[4] = sums.v[tile];
      *reinterpret_cast<float2*>(partial + (warp * a.tokens + g) * kRows + tile * kTileRows +
                                 2 * j) = make_float2(s[0] + s[2], s[1] + s[3]);
    }
  }
  __syncthreads();
  finish_rows(a, block, partial, squares);
}

inline bool fits(const TensorView& weight) {
  return weight.dtype == DType::kBF16 && weight.shape[1] % kPiece == 0;
}

// Without what a launcher chooses.
inline Args args_of(const MatVec& m) {
  const int rows = static_cast<int>(m.gated ? m.weight.shape[0] / 2 : m.weight.shape[0]);
  return {.x = m.x,
          .norm_weight = m.norm_weight,
          .weight = static_cast<const __nv_bfloat16*>(m.weight.data),
          .y = m.y,
          .tokens = m.tokens,
          .rows = rows,
          .cols = static_cast<int>(m.weight.shape[1]),
          .y_stride = stride_of(m),
          .groups = 0,
          .slices = 0,
          .panel_pieces = 0,
          .panel = 0,
          .eps = m.eps,
          .normalize = m.normalize,
          .gated = m.gated,
          .accumulate = m.accumulate};
}

// Divides the activations of a block whose groups and slices are chosen into panels of about
// `activation_bytes`; returns how much shared memory it takes.
inline size_t divide(Args& a, int64_t activation_bytes = kActivationBytes) {
  // Panels but the last are a multiple of the ring, so that each begins at the ring's first place.
  const int pieces = (a.cols / kPiece + a.slices - 1) / a.slices;
  const int most = static_cast<int>(activation_bytes / 4 / a.tokens) / (a.slices * kPiece);
  a.panel_pieces = std::max(most / kDepth, 1) * kDepth;
  a.panel = a.slices * a.panel_pieces * kPiece;
  if (a.cols * a.tokens * 4 <= activation_bytes) {
    a.panel_pieces = pieces;
    a.panel = a.cols;
  }
  const int warps = a.groups * a.slices;
  return warps * std::max<size_t>(kRingBytes, size_t{4} * a.tokens * kRows) +
         size_t{4} * a.tokens * (a.panel + 32);
}

}  // namespace gsa::cuda::dense
