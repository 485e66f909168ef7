#include "kernels/cuda/small_matvec.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/dense_stream.cuh"
#include "kernels/cuda/small_matvec_inputs.cuh"

namespace gsa::cuda {
namespace {

using namespace few;

// Adds a warp's sums to those of its panels before, as [token][row].
template <typename Sums>
__device__ __forceinline__ void add_sums(const Sums& sums, bool first, float* to) {
  to += threadIdx.x % 32 / 4;
  sums.finish([&](int token, float upper, float lower) {
    float* out = to + token * kRows;
    out[0] = first ? upper : out[0] + upper;
    out[kTileRows] = first ? lower : out[kTileRows] + lower;
  });
}

// One of a block's outputs: number i of [unit][token][row].
template <int kTokens>
struct Output {
  int row, token;
  bool there;
  float* y;

  __device__ Output(const Args& a, const Part& part, int i) {
    const int r = i % kRows, unit = i / kRows / kTokens;
    const int outputs = a.gated ? kTileRows : kRows;
    token = i / kRows % kTokens;
    row = (part.unit + unit) * outputs + r;
    there = unit < part.units && r < outputs && row < a.rows && token < a.tokens;
    y = a.y + int64_t{token} * a.y_stride + row;
  }
  __device__ __forceinline__ float before(const Args& a) const {
    return a.accumulate && there ? *y : 0.0f;
  }
};

// Adds up partial[unit][slice][token][row] over the slices and finishes the outputs. `before` is
// what stood in this thread's first one.
template <int kTokens>
__device__ __forceinline__ void finish_units(const Args& a, const Part& part, const float* partial,
                                             const float* squares, float before) {
  for (int i = threadIdx.x; i < part.units * kTokens * kRows; i += blockDim.x) {
    const Output<kTokens> out(a, part, i);
    if (!out.there) continue;
    const int unit = i / kRows / kTokens;
    const float* from = partial + (unit * a.slices * kTokens + out.token) * kRows + i % kRows;
    float sum = 0, up = 0, norm = 0;
#pragma unroll 4
    for (int s = 0; s < a.slices; ++s, from += kTokens * kRows) {
      sum += from[0];
      if (a.gated) up += from[kTileRows];
    }
    float scale = 1;
    if (a.normalize) {
#pragma unroll 4
      for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w)
        norm += squares[out.token * kMostWarps + w];
      // The norm's scale commutes with the product.
      scale = rsqrtf(norm * a.inverse_cols + a.eps);
    }
    *out.y = a.gated ? silu(sum * scale) * (up * scale)
                     : sum * scale + (i < static_cast<int>(blockDim.x) ? before : out.before(a));
  }
}

template <DType kType, int kTokens>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    few_kernel(const __grid_constant__ Args a, const __grid_constant__ dense::Args apart) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float squares[kTokens * kMostWarps];
  if (blockIdx.x >= a.blocks) return dense::run(apart, blockIdx.x - a.blocks, shared, squares);
  grid_release();
  const Part part(a);
  using Stream = TileStream<kType, kTokens>;
  Stream stream(a, part, shared);
  const int warps = blockDim.x / 32;
  float* const partial = reinterpret_cast<float*>(shared + warps * Stream::kRing);
  // [unit][slice][token][row]
  const Panel<kType, kTokens> panel(
      reinterpret_cast<unsigned char*>(partial + a.units * a.slices * kTokens * kRows),
      a.slices * a.panel);
  if (a.norm_weight != nullptr) {
    for (int c = threadIdx.x * 32; c < a.cols; c += blockDim.x * 32) prefetch(a.norm_weight + c);
  }
  grid_wait();

  const float before = Output<kTokens>(a, part, threadIdx.x).before(a);
  float own_squares[kTokens] = {};
  for (int p = 0; p * a.panel < a.slice_tiles + (a.longer > 0); ++p) {
    if (p > 0) __syncthreads();
    load_panel<kType, kTokens>(a, part, p, panel, own_squares);
    __syncthreads();
    const int count = min(a.panel, part.tiles - p * a.panel);
    for (int unit = part.group; unit < part.units; unit += a.groups) {
      auto operand = panel.operand(part.slice * a.panel);
      typename Panel<kType, kTokens>::Sums sums;
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        const unsigned char* upper = stream.wait();
        sums.add(upper, upper + Stream::kTileBytes, operand);
        operand.next();
        __syncwarp();
        stream.refill();
      }
      add_sums(sums, p == 0, partial + (unit * a.slices + part.slice) * kTokens * kRows);
    }
  }
  if (a.normalize) keep_squares(own_squares, kTokens, 0, squares);
  __syncthreads();

  finish_units<kTokens>(a, part, partial, squares, before);
}

// Divides a block's work between so many warps at most, so that the one with the most has the
// least, and its shared memory between the rings, the sums and the activations; returns how much it
// takes.
template <DType kType, int kTokens>
size_t divide(Args& a, int warps, size_t room) {
  const auto most = [&](int slices) {
    return ceil_div(a.units, std::min(warps / slices, a.units)) * ceil_div(a.across, slices);
  };
  a.slices = 1;
  for (int slices = 2; slices <= std::min(warps, a.across); ++slices) {
    if (most(slices) < most(a.slices)) a.slices = slices;
  }
  a.groups = std::min(warps / a.slices, a.units);
  a.inverse_slices = ceil_div(1 << 16, a.slices);
  a.slice_tiles = a.across / a.slices;
  a.longer = a.across % a.slices;
  const size_t fixed = a.groups * a.slices * TileStream<kType, kTokens>::kRing +
                       a.units * a.slices * kTokens * kRows * sizeof(float);
  const auto bytes = [&](int panel) {
    return fixed + Panel<kType, kTokens>::bytes(a.slices * panel);
  };
  const int tiles = ceil_div(a.across, a.slices);
  int panels = 1;
  while (panels < tiles && bytes(ceil_div(tiles, panels)) > room) ++panels;
  a.panel = ceil_div(tiles, panels);
  return bytes(a.panel);
}

// The same for the rows apart, which all warps of a block have.
size_t divide(dense::Args& apart, int warps, size_t room) {
  if (apart.rows == 0) return 0;
  apart.groups = 1;
  apart.slices = warps;
  const int64_t left = room - warps * dense::kRingBytes - 4 * apart.tokens * 32;
  return dense::divide(apart, std::min(left, dense::kActivationBytes));
}

template <DType kType, int kTokens>
void launch_few(const Launch& how, Args a, dense::Args apart) {
  const size_t room = how.shared_limit - sizeof(float) * kMatVecTokens * kMostWarps;
  [[maybe_unused]] static const bool allowed = [&] {
    allow_shared_memory(few_kernel<kType, kTokens>, room);
    return true;
  }();
  a.all_units = ceil_div(a.rows, a.gated ? kTileRows : kRows);
  const int row_bytes = a.across * SmallTileOf<kType>::kBytes;
  a.unit_bytes = a.gated ? row_bytes : 2 * row_bytes;
  a.to_lower = a.gated ? a.down / 2 * row_bytes : row_bytes;
  const int blocks_apart = dense::blocks_of(apart);
  constexpr int kMostUnits = 64 / kTokens;  // their sums wait in shared memory
  a.units = ceil_div(a.all_units, std::max(how.multiprocessors - blocks_apart, 1));
  a.units = std::min(a.units, kMostUnits);
  size_t bytes = 0;
  for (int warps = kMostWarps;; warps = std::max(warps - 4, 1), a.units = ceil_div(a.units, 2)) {
    bytes = divide<kType, kTokens>(a, warps, room);
    bytes = std::max(bytes, divide(apart, a.groups * a.slices, room));
    if (bytes <= room || (warps == 1 && a.units == 1)) break;
  }
  assert(bytes <= room);
  a.blocks = ceil_div(a.all_units, a.units);
  // With more than half of the memory no multiprocessor has two blocks while another has none.
  launch(how,
         {.blocks = static_cast<unsigned>(a.blocks + blocks_apart),
          .threads = static_cast<unsigned>(a.groups * a.slices * 32),
          .shared_bytes = std::max(bytes, how.shared_limit / 2)},
         few_kernel<kType, kTokens>, a, apart);
}

template <DType kType>
void launch_few(const Launch& how, const Args& a, const dense::Args& apart) {
  if (a.tokens == 1) return launch_few<kType, 1>(how, a, apart);
  if (a.tokens == 2) return launch_few<kType, 2>(how, a, apart);
  launch_few<kType, 4>(how, a, apart);
}

// For at most kMatVecTokens tokens.
void multiply_few(const Launch& how, const MatVec& m) {
  const Args a{.x = m.x,
               .norm_weight = m.norm_weight,
               .weight = static_cast<const unsigned char*>(m.weight.data),
               .y = m.y,
               .tokens = m.tokens,
               .rows = static_cast<int>(m.gated ? m.weight.shape[0] / 2 : m.weight.shape[0]),
               .cols = static_cast<int>(m.weight.shape[1]),
               .y_stride = stride_of(m),
               .blocks = 0,
               .across = static_cast<int>(SmallTile::across(m.weight.shape[1])),
               .unit_bytes = 0,
               .to_lower = 0,
               .down = static_cast<int>(SmallTile::down(m.weight.shape[0])),
               .all_units = 0,
               .units = 0,
               .groups = 0,
               .slices = 0,
               .inverse_slices = 0,
               .slice_tiles = 0,
               .longer = 0,
               .panel = 0,
               .eps = m.eps,
               .inverse_cols = 1.0f / static_cast<float>(m.weight.shape[1]),
               .normalize = m.normalize,
               .gated = m.gated,
               .accumulate = m.accumulate};
  const dense::Args apart = m.apart ? dense::args_of(product_apart(m)) : dense::Args{};
  if (m.weight.dtype == DType::kQ8) return launch_few<DType::kQ8>(how, a, apart);
  launch_few<DType::kQ4>(how, a, apart);
}

}  // namespace

bool fits_small_mat_vec(const MatVec& m) {
  const int64_t cols = m.weight.shape[1];
  if (!is_quantized(m.weight.dtype) || cols % 4 != 0) return false;
  if (m.gated && m.weight.shape[0] % (2 * kTileRows) != 0) return false;
  return !m.apart || (dense::fits(m.apart) && cols >= kMostWarps * dense::kPiece);
}

// More than kMatVecTokens come here only where small_batch does not take them: devices
// without clusters read the weights once for every four.
void small_mat_vec(const Launch& how, const MatVec& m) {
  assert(m.tokens >= 1 && m.tokens <= mat_vec_tokens(m.weight.dtype) && fits_small_mat_vec(m));
  for (int first = 0; first < m.tokens; first += kMatVecTokens) {
    MatVec part = m;
    part.tokens = std::min(m.tokens - first, kMatVecTokens);
    part.x += int64_t{first} * m.weight.shape[1];
    part.y += int64_t{first} * stride_of(m);
    multiply_few(how, part);
  }
}

}  // namespace gsa::cuda
