#include "kernels/cuda/matvec.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/dense_stream.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/small_matvec.cuh"
#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda {
namespace {

__global__ void __launch_bounds__(kMostWarps * 32, 2)
    stream_kernel(const __grid_constant__ dense::Args a) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float squares[kMatVecTokens * kMostWarps];
  dense::run(a, blockIdx.x, shared, squares);
}

void launch_stream(const Launch& how, dense::Args args) {
  using namespace dense;
  constexpr size_t kPanelBytes = 38 * 1024;  // at most, what divide() makes of it
  const size_t room = std::min(how.shared_limit - sizeof(float) * kMatVecTokens * kMostWarps,
                               kMostWarps * kRingBytes + kPanelBytes);
  [[maybe_unused]] static const bool allowed = [&] {
    allow_shared_memory(stream_kernel, room);
    return true;
  }();
  const int most_warps = std::min(kMostWarps, static_cast<int>((room - kPanelBytes) / kRingBytes));
  // Up to two blocks for every multiprocessor, so that a fast one can take more.
  const int outputs = args.gated ? kTileRows : kRows;
  const int groups = (args.rows + outputs - 1) / outputs;
  const int slots = 2 * how.multiprocessors;
  args.groups = std::min((groups + slots - 1) / slots, most_warps);
  const int warps_wanted = std::min(args.tokens <= 2 ? kMostWarps : kMostWarps * 3 / 4, most_warps);
  args.slices = std::clamp(warps_wanted / args.groups, 1, args.cols / kPiece);
  const size_t bytes = divide(args);
  assert(bytes <= room);
  launch(how,
         {.blocks = static_cast<unsigned>((groups + args.groups - 1) / args.groups),
          .threads = static_cast<unsigned>(args.groups * args.slices * 32),
          .shared_bytes = bytes},
         stream_kernel, args);
}

// Any type and any shape: a warp for each row.
struct PlainArgs {
  const float* x;
  const float* norm_weight;
  float* y;
  int tokens, rows, cols, y_stride;
  float eps;
  bool normalize, gated, accumulate;
};

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

template <typename T>
struct DenseWeight {
  const T* weight;
  int cols;

  __device__ float operator()(int row, int col) const {
    return to_float(weight[int64_t{row} * cols + col]);
  }
};

template <DType kType>
struct SmallWeight {
  const unsigned char* tiles;
  int across;

  __device__ float operator()(int row, int col) const {
    return small_weight<kType>(tiles, across, row, col);
  }
};

template <typename W>
__global__ void __launch_bounds__(kThreads) plain_kernel(PlainArgs a, W weight) {
  __shared__ float scale[kSmallMatVecTokens];
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
  const auto dot = [&](int row, int t) {
    const float* x = a.x + int64_t{t} * a.cols;
    float sum = 0;
#pragma unroll 8
    for (int c = lane; c < a.cols; c += 32) {
      const float norm = a.norm_weight == nullptr ? 1.0f : a.norm_weight[c];
      sum += weight(row, c) * (x[c] * norm);
    }
    return warp_sum(sum) * (a.normalize ? scale[t] : 1.0f);
  };
  for (int t = 0; t < a.tokens; ++t) {
    float value = dot(row, t);
    if (a.gated) value = silu(value) * dot(row + a.rows, t);
    if (lane != 0) continue;
    float* y = a.y + int64_t{t} * a.y_stride + row;
    *y = a.accumulate ? *y + value : value;
  }
}

template <typename W>
void launch_plain(const Launch& how, const PlainArgs& args, const W& weight) {
  const unsigned blocks = (args.rows + kWarps - 1) / kWarps;
  launch(how, {.blocks = blocks, .threads = kThreads}, plain_kernel<W>, args, weight);
}

template <typename T>
void launch_dense(const Launch& how, const PlainArgs& args, const void* weight) {
  launch_plain(how, args, DenseWeight<T>{static_cast<const T*>(weight), args.cols});
}

template <DType kType>
void launch_small(const Launch& how, const PlainArgs& args, const void* weight) {
  launch_plain(how, args,
               SmallWeight<kType>{static_cast<const unsigned char*>(weight),
                                  static_cast<int>(SmallTile::across(args.cols))});
}

// One weight.
void multiply_one(const Launch& how, const MatVec& m) {
  const int cols = static_cast<int>(m.weight.shape[1]);
  const int rows = static_cast<int>(m.gated ? m.weight.shape[0] / 2 : m.weight.shape[0]);
  if (fits_small_mat_vec(m)) return small_mat_vec(how, m);
  if (dense::fits(m.weight)) return launch_stream(how, dense::args_of(m));
  const PlainArgs args{.x = m.x,
                       .norm_weight = m.norm_weight,
                       .y = m.y,
                       .tokens = m.tokens,
                       .rows = rows,
                       .cols = cols,
                       .y_stride = stride_of(m),
                       .eps = m.eps,
                       .normalize = m.normalize,
                       .gated = m.gated,
                       .accumulate = m.accumulate};
  switch (m.weight.dtype) {
    case DType::kF32:
      return launch_dense<float>(how, args, m.weight.data);
    case DType::kF16:
      return launch_dense<__half>(how, args, m.weight.data);
    case DType::kQ8:
      return launch_small<DType::kQ8>(how, args, m.weight.data);
    case DType::kQ4:
      return launch_small<DType::kQ4>(how, args, m.weight.data);
    default:
      assert(m.weight.dtype == DType::kBF16);
      return launch_dense<__nv_bfloat16>(how, args, m.weight.data);
  }
}

}  // namespace

bool mat_vec_takes(const MatVec& m) {
  if (m.tokens > mat_vec_tokens(m.weight.dtype)) return false;
  return !m.apart || m.tokens <= mat_vec_tokens(m.apart.dtype) || fits_small_mat_vec(m);
}

void mat_vec(const Launch& how, const MatVec& m) {
  assert(m.tokens >= 1 && mat_vec_takes(m) && !(m.gated && m.accumulate));
  if (!m.apart || fits_small_mat_vec(m)) return multiply_one(how, m);
  MatVec part = m;
  part.apart = {};
  part.y_stride = stride_of(m);
  multiply_one(how, part);
  multiply_one(how, product_apart(m));
}

}  // namespace gsa::cuda
