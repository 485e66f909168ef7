#include "kernels/cuda/matvec.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {
namespace {

// The streaming kernel. A block owns kTiles tiles of 8 rows; its warps share out the columns in
// pieces of 32. Each lane copies 16 bytes of its row per tile and piece into its own places of a
// ring in shared memory, kDepth copies ahead of their use, and reads back only what it copied
// itself: there is nothing to synchronise, and the ring fills before the activations are known.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kPiece = 32;  // columns
constexpr int kTileRows = 8;
constexpr int kPair = 2;   // tiles copied and multiplied together
constexpr int kDepth = 8;  // pairs under way per lane
constexpr int kGroup = 8;  // tokens that share a product
constexpr size_t kRingBytes = size_t{kWarps} * kDepth * kPair * 32 * 16;
constexpr size_t kActivationBytes = 64 * 1024;

struct Args {
  const float* x;
  const float* norm_weight;
  const __nv_bfloat16* weight;
  float* y;
  int tokens, rows, cols, panel;
  float eps;
  bool normalize, accumulate;
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

// Loads columns [begin, begin + n) of all tokens times the norm's weight, and adds the squares of
// the plain values to this thread's sums.
__device__ __forceinline__ void load_panel(const Args& a, int begin, int n, const Panel& panel,
                                           float (&squares)[kMatVecTokens]) {
#pragma unroll
  for (int t = 0; t < kMatVecTokens; ++t) {
    if (t >= a.tokens) break;
    const float* row = a.x + int64_t{t} * a.cols + begin;
#pragma unroll 4
    for (int c = threadIdx.x * 4; c < n; c += kThreads * 4) {
      const float4 x = *reinterpret_cast<const float4*>(row + c);
      float4 w = make_float4(1, 1, 1, 1);
      if (a.norm_weight != nullptr) {
        w = __ldg(reinterpret_cast<const float4*>(a.norm_weight + begin + c));
      }
      squares[t] += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
      const float v[4] = {x.x * w.x, x.y * w.y, x.z * w.z, x.w * w.w};
      __nv_bfloat16 hi[4], lo[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        hi[i] = __float2bfloat16_rn(v[i]);
        lo[i] = __float2bfloat16_rn(v[i] - __bfloat162float(hi[i]));
      }
      *reinterpret_cast<uint2*>(panel.hi + t * panel.pitch + c) = *reinterpret_cast<uint2*>(hi);
      *reinterpret_cast<uint2*>(panel.lo + t * panel.pitch + c) = *reinterpret_cast<uint2*>(lo);
    }
  }
}

// The fragments of up to 8 tokens and one piece of columns for two products of 16 columns: the high
// halves as rows 0 to 7, the low ones as rows 8 to 15.
__device__ __forceinline__ void load_tokens(const Panel& panel, int tokens, int token, int column,
                                            uint32_t (&first)[4], uint32_t (&second)[4]) {
  uint4 hi = {}, lo = {};
  if (token < tokens) {
    hi = *reinterpret_cast<const uint4*>(panel.hi + token * panel.pitch + column);
    lo = *reinterpret_cast<const uint4*>(panel.lo + token * panel.pitch + column);
  }
  first[0] = hi.x, first[1] = lo.x, first[2] = hi.y, first[3] = lo.y;
  second[0] = hi.z, second[1] = lo.z, second[2] = hi.w, second[3] = lo.w;
}

template <int kTiles, bool kGated, int kGroups>
__global__ void __launch_bounds__(kThreads, 2) stream_kernel(Args a) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float block_squares[kMatVecTokens][kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, j = lane % 4;
  const int pieces = a.cols / kPiece;
  const int mine = (pieces - warp + kWarps - 1) / kWarps;  // pieces warp, warp + kWarps, ...
  const Panel panel(shared + kRingBytes, a.tokens, a.panel);
  uint4* ring = reinterpret_cast<uint4*>(shared) + warp * kDepth * kPair * 32 + lane;
  grid_release();

  // A gated block's tiles are gate rows and the up rows that belong to them, in turn.
  const int first_row = blockIdx.x * (kGated ? kTiles / 2 : kTiles) * kTileRows;
  const __nv_bfloat16* base = a.weight + warp * kPiece + j * 8;
  const auto source = [&](int tile) {
    const int row = min(first_row + (kGated ? tile / 2 : tile) * kTileRows + g, a.rows - 1);
    return base + int64_t{row + (kGated && tile % 2 == 1 ? a.rows : 0)} * a.cols;
  };
  int slot = 0;
  // Pair number `pair`, counted from the first of piece i.
  constexpr int kPairs = kTiles / kPair;
  const auto copy = [&](int i, int pair) {
    const int piece = i + pair / kPairs;
    if (piece < mine) {
#pragma unroll
      for (int n = 0; n < kPair; ++n) {
        copy_async(ring + (slot * kPair + n) * 32,
                   source(pair % kPairs * kPair + n) + piece * (kWarps * kPiece));
      }
    }
    copy_commit();
    slot = (slot + 1) % kDepth;
  };
#pragma unroll
  for (int n = 0; n < kDepth; ++n) copy(0, n);
  if (a.norm_weight != nullptr) {
    for (int c = threadIdx.x * 32; c < a.cols; c += kThreads * 32) prefetch(a.norm_weight + c);
  }

  float sums[kGroups][kTiles][4] = {};
  float squares[kMatVecTokens] = {};
  grid_wait();
  int i = 0;
  for (int begin = 0; begin < a.cols; begin += a.panel) {
    const int n = min(a.panel, a.cols - begin);
    if (begin > 0) __syncthreads();
    load_panel(a, begin, n, panel, squares);
    __syncthreads();
    for (int piece = warp; piece < n / kPiece; piece += kWarps, ++i) {
      uint32_t x[kGroups][2][4];
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        load_tokens(panel, a.tokens, group * kGroup + g, piece * kPiece + j * 8, x[group][0],
                    x[group][1]);
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        copy_wait<kDepth - 1>();
        uint4 w[kPair];
#pragma unroll
        for (int n = 0; n < kPair; ++n) w[n] = ring[(slot * kPair + n) * 32];
        copy(i, pair + kDepth);
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
          for (int n = 0; n < kPair; ++n) {
            mma(x[group][0], w[n].x, w[n].y, sums[group][pair * kPair + n]);
          }
        }
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
#pragma unroll
          for (int n = 0; n < kPair; ++n) {
            mma(x[group][1], w[n].z, w[n].w, sums[group][pair * kPair + n]);
          }
        }
      }
    }
  }

  // The warps' sums meet in shared memory: [warp][token][row of the block].
  constexpr int kRows = kTiles * kTileRows;
  copy_wait<0>();
  __syncthreads();
  float* partial = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int t = group * kGroup + g;
    if (t >= a.tokens) continue;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float(&s)[4] = sums[group][tile];
      *reinterpret_cast<float2*>(partial + (warp * a.tokens + t) * kRows + tile * kTileRows +
                                 2 * j) = make_float2(s[0] + s[2], s[1] + s[3]);
    }
  }
  if (a.normalize) {
#pragma unroll
    for (int t = 0; t < kMatVecTokens; ++t) {
      if (t >= a.tokens) break;
      const float sum = warp_sum(squares[t]);
      if (lane == 0) block_squares[t][warp] = sum;
    }
  }
  __syncthreads();
  constexpr int kOutputs = kGated ? kRows / 2 : kRows;
  for (int o = threadIdx.x; o < a.tokens * kOutputs; o += kThreads) {
    const int t = o / kOutputs, r = o % kOutputs;
    const int row = first_row + r;
    if (row >= a.rows) continue;
    const int at = kGated ? r / kTileRows * 2 * kTileRows + r % kTileRows : r;
    float* y = a.y + int64_t{t} * a.rows + row;
    const float before = a.accumulate ? *y : 0.0f;
    float sum = 0, up = 0, norm = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* from = partial + (w * a.tokens + t) * kRows + at;
      sum += from[0];
      if (kGated) up += from[kTileRows];
      if (a.normalize) norm += block_squares[t][w];
    }
    // The norm's scale commutes with the product.
    const float scale = a.normalize ? rsqrtf(norm / a.cols + a.eps) : 1.0f;
    *y = kGated ? silu(sum * scale) * (up * scale) : before + sum * scale;
  }
}

template <int kTiles, bool kGated, int kGroups>
void launch_stream(const Launch& how, const Args& args) {
  const auto kernel = stream_kernel<kTiles, kGated, kGroups>;
  const size_t bytes = kRingBytes + size_t{4} * args.tokens * (args.panel + 32);
  [[maybe_unused]] static const bool allowed = [&] {
    allow_shared_memory(kernel, kRingBytes + kActivationBytes + 4096);
    return true;
  }();
  const int outputs = (kGated ? kTiles / 2 : kTiles) * kTileRows;
  const unsigned blocks = (args.rows + outputs - 1) / outputs;
  launch(how, {.blocks = blocks, .threads = kThreads, .shared_bytes = bytes}, kernel, args);
}

// The first number of tiles in the list that is large enough, or the last.
template <int kTiles, int... kMore>
void choose_stream(const Launch& how, const Args& args, bool gated, int wanted) {
  if constexpr (sizeof...(kMore) > 0) {
    if (kTiles < wanted) return choose_stream<kMore...>(how, args, gated, wanted);
  }
  if (args.tokens <= kGroup) {
    if (gated) return launch_stream<kTiles, true, 1>(how, args);
    return launch_stream<kTiles, false, 1>(how, args);
  }
  // Twice the sums per tile: registers hold fewer tiles.
  constexpr int kFewer = kTiles < 8 ? kTiles : 8;
  if (gated) return launch_stream<kFewer, true, 2>(how, args);
  launch_stream<kFewer, false, 2>(how, args);
}

// Any type and any shape: a warp for each row.
struct PlainArgs {
  const float* x;
  const float* norm_weight;
  float* y;
  int tokens, rows, cols;
  float eps;
  bool normalize, gated, accumulate;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) plain_kernel(PlainArgs a, const T* weight) {
  __shared__ float scale[kMatVecTokens];
  __shared__ float scratch[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  grid_release();
  grid_wait();
  for (int t = 0; t < a.tokens && a.normalize; ++t) {
    float squares = 0;
    for (int c = threadIdx.x; c < a.cols; c += kThreads) {
      const float x = a.x[int64_t{t} * a.cols + c];
      squares += x * x;
    }
    const float sum = block_sum(squares, scratch);
    if (threadIdx.x == 0) scale[t] = rsqrtf(sum / a.cols + a.eps);
    __syncthreads();
  }
  const int row = blockIdx.x * kWarps + warp;
  if (row >= a.rows) return;
  const auto dot = [&](const T* w, int t) {
    const float* x = a.x + int64_t{t} * a.cols;
    float sum = 0;
#pragma unroll 8
    for (int c = lane; c < a.cols; c += 32) {
      const float norm = a.norm_weight == nullptr ? 1.0f : a.norm_weight[c];
      sum += to_float(w[c]) * (x[c] * norm);
    }
    return warp_sum(sum) * (a.normalize ? scale[t] : 1.0f);
  };
  for (int t = 0; t < a.tokens; ++t) {
    float value = dot(weight + int64_t{row} * a.cols, t);
    if (a.gated) value = silu(value) * dot(weight + int64_t{row + a.rows} * a.cols, t);
    if (lane != 0) continue;
    float* y = a.y + int64_t{t} * a.rows + row;
    *y = a.accumulate ? *y + value : value;
  }
}

template <typename T>
void launch_plain(const Launch& how, const PlainArgs& args, const void* weight) {
  const unsigned blocks = (args.rows + kWarps - 1) / kWarps;
  launch(how, {.blocks = blocks, .threads = kThreads}, plain_kernel<T>, args,
         static_cast<const T*>(weight));
}

}  // namespace

void mat_vec(const Launch& how, const MatVec& m) {
  const int cols = static_cast<int>(m.weight.shape[1]);
  const int rows = static_cast<int>(m.gated ? m.weight.shape[0] / 2 : m.weight.shape[0]);
  assert(m.tokens >= 1 && m.tokens <= kMatVecTokens && !(m.gated && m.accumulate));
  if (m.weight.dtype == DType::kBF16 && cols % kPiece == 0) {
    constexpr int kStep = kWarps * kPiece;
    const int most = static_cast<int>(kActivationBytes / 4 / m.tokens) / kStep * kStep;
    const int tiles = (m.gated ? 2 : 1) * ((rows + kTileRows - 1) / kTileRows);
    const int slack = how.multiprocessors + how.multiprocessors / 16;
    const Args args{.x = m.x,
                    .norm_weight = m.norm_weight,
                    .weight = static_cast<const __nv_bfloat16*>(m.weight.data),
                    .y = m.y,
                    .tokens = m.tokens,
                    .rows = rows,
                    .cols = cols,
                    .panel = std::min((cols + kStep - 1) / kStep * kStep, most),
                    .eps = m.eps,
                    .normalize = m.normalize,
                    .accumulate = m.accumulate};
    // As few tiles per block as give every multiprocessor one block, or one more here and there.
    const int wanted = (tiles + slack - 1) / slack;
    return choose_stream<2, 4, 6, 8, 10, 12, 14>(how, args, m.gated, wanted);
  }
  const PlainArgs args{.x = m.x,
                       .norm_weight = m.norm_weight,
                       .y = m.y,
                       .tokens = m.tokens,
                       .rows = rows,
                       .cols = cols,
                       .eps = m.eps,
                       .normalize = m.normalize,
                       .gated = m.gated,
                       .accumulate = m.accumulate};
  switch (m.weight.dtype) {
    case DType::kF32:
      return launch_plain<float>(how, args, m.weight.data);
    case DType::kF16:
      return launch_plain<__half>(how, args, m.weight.data);
    default:
      assert(m.weight.dtype == DType::kBF16);
      return launch_plain<__nv_bfloat16>(how, args, m.weight.data);
  }
}

}  // namespace gsa::cuda
