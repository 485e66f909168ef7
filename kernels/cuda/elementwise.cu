#include "kernels/cuda/elementwise.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks_for(int64_t n) { return static_cast<unsigned>((n + kThreads - 1) / kThreads); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x;
  else
    return T(x);
}

template <typename T>
__global__ void embed_kernel(const T* table, const int32_t* tokens, int64_t D, float* x) {
  grid_release();
  grid_wait();
  const T* row = table + tokens[blockIdx.x] * D;
  for (int64_t c = threadIdx.x; c < D; c += kThreads) x[blockIdx.x * D + c] = to_float(row[c]);
}

__global__ void take_tokens_kernel(const int32_t* drawn, const int32_t* rows, int64_t count,
                                   int32_t* tokens) {
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t < count) tokens[t] = drawn[rows[t]];
}

__global__ void take_rows_kernel(const float* x, const int32_t* rows, int64_t D, float* out) {
  grid_release();
  grid_wait();
  const float* row = x + rows[blockIdx.x] * D;
  for (int64_t c = threadIdx.x; c < D; c += kThreads) out[blockIdx.x * D + c] = row[c];
}

template <typename T>
__global__ void fill_kernel(Slices to, float value) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < to.count) static_cast<T*>(to.data)[blockIdx.y * to.pitch + i] = from_float<T>(value);
}

template <typename T>
__global__ void gather_kernel(Slices from, float* out) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= from.count) return;
  out[blockIdx.y * from.count + i] =
      to_float(static_cast<const T*>(from.data)[blockIdx.y * from.pitch + i]);
}

template <typename T>
__global__ void scatter_kernel(const float* floats, Slices to) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= to.count) return;
  static_cast<T*>(to.data)[blockIdx.y * to.pitch + i] =
      from_float<T>(floats[blockIdx.y * to.count + i]);
}

// A thread for every element of the slices.
Grid grid_for(const Slices& slices) {
  return {.blocks = dim3(blocks_for(slices.count), static_cast<unsigned>(slices.rows)),
          .threads = kThreads};
}

// Four consecutive elements of any type, as they are loaded and stored in one piece.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

// One block per row, whose values stay in registers between the two passes: kHeld vectors of each
// thread. kHeld 0 takes rows of any length and alignment.
template <typename T, int kHeld>
__global__ void __launch_bounds__(kThreads) operand_kernel(Operand a, T* out) {
  __shared__ float scratch[kThreads / 32];
  const float* x = a.x + blockIdx.x * a.cols;
  out += blockIdx.x * a.cols;
  const auto scale_of = [&](float squares) {
    return rsqrtf(block_sum(squares, scratch) / static_cast<float>(a.cols) + a.eps);
  };
  grid_release();
  if constexpr (kHeld > 0) {
    const auto column = [&](int i) { return (threadIdx.x + i * kThreads) * 4; };
    Four<float> weight[kHeld], held[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      weight[i] = {1, 1, 1, 1};
      if (a.norm_weight != nullptr && column(i) < a.cols) {
        weight[i] = *reinterpret_cast<const Four<float>*>(a.norm_weight + column(i));
      }
    }
    grid_wait();
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      held[i] = {};
      if (column(i) < a.cols) held[i] = *reinterpret_cast<const Four<float>*>(x + column(i));
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      for (float v : held[i].v) squares += v * v;
    }
    const float scale = scale_of(squares);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      if (column(i) >= a.cols) continue;
      Four<T> result;
      for (int n = 0; n < 4; ++n) {
        result.v[n] = from_float<T>(held[i].v[n] * scale * weight[i].v[n]);
      }
      *reinterpret_cast<Four<T>*>(out + column(i)) = result;
    }
  } else {
    grid_wait();
    float squares = 0;
    for (int64_t c = threadIdx.x; c < a.cols; c += kThreads) squares += x[c] * x[c];
    const float scale = scale_of(squares);
    for (int64_t c = threadIdx.x; c < a.cols; c += kThreads) {
      const float weight = a.norm_weight == nullptr ? 1.0f : a.norm_weight[c];
      out[c] = from_float<T>(x[c] * scale * weight);
    }
  }
}

// blockIdx.y is the row; a thread has kWidth columns.
template <typename T, int kWidth>
__global__ void silu_multiply_kernel(const T* gate_up, int F, T* out) {
  const int c = (blockIdx.x * kThreads + threadIdx.x) * kWidth;
  const T* gate = gate_up + int64_t{blockIdx.y} * 2 * F + c;
  out += int64_t{blockIdx.y} * F + c;
  grid_release();
  grid_wait();
  if (c >= F) return;
  if constexpr (kWidth == 4) {
    const auto g = *reinterpret_cast<const Four<T>*>(gate);
    const auto u = *reinterpret_cast<const Four<T>*>(gate + F);
    Four<T> result;
    for (int i = 0; i < 4; ++i) {
      result.v[i] = from_float<T>(silu(to_float(g.v[i])) * to_float(u.v[i]));
    }
    *reinterpret_cast<Four<T>*>(out) = result;
  } else {
    *out = from_float<T>(silu(to_float(gate[0])) * to_float(gate[F]));
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    map_heads_kernel(const T* map, int K, int64_t width, float* qkvf) {
  extern __shared__ float head[];
  float* at = qkvf + blockIdx.y * width + blockIdx.x * int64_t{K};
  grid_release();
  grid_wait();
  for (int i = threadIdx.x; i < K; i += kThreads) head[i] = at[i];
  __syncthreads();
  for (int row = threadIdx.x / 32; row < K; row += kThreads / 32) {
    float sum = 0;
    for (int c = threadIdx.x % 32; c < K; c += 32) {
      sum += to_float(map[int64_t{row} * K + c]) * head[c];
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) at[row] = sum;
  }
}

struct ConvolveArgs {
  const float* weight;
  float* qkvf;
  float* history;
  float* edges;
  const Segment* segments;
  const ChunkTile* tiles;
  int64_t width;
  int channels, C;
};

// Of a layer's last inputs, those of a state.
__device__ __forceinline__ float* history_of(const ConvolveArgs& a, int32_t state) {
  return a.history + int64_t{state} * (a.C - 1) * a.channels;
}

// Input number `before` steps before the tile's first token: of the segment, or of its history.
__global__ void save_edges_kernel(ConvolveArgs a) {
  const int channel = blockIdx.x * kThreads + threadIdx.x;
  grid_release();
  grid_wait();
  const ChunkTile tile = a.tiles[blockIdx.y];
  const Segment segment = a.segments[tile.segment];
  if (channel >= a.channels || segment.state < 0) return;
  for (int i = 0; i < a.C - 1; ++i) {
    const int row = tile.first_row - (a.C - 1) + i;
    const float* from =
        row >= segment.first
            ? a.qkvf + row * a.width
            : history_of(a, segment.state) + int64_t{a.C - 1 + row - segment.first} * a.channels;
    a.edges[(int64_t{blockIdx.y} * (a.C - 1) + i) * a.channels + channel] = from[channel];
  }
}

// One channel of one tile per thread, its last C - 1 inputs in the edges' place.
__global__ void convolve_kernel(ConvolveArgs a) {
  const int channel = blockIdx.x * kThreads + threadIdx.x;
  grid_release();
  grid_wait();
  const ChunkTile tile = a.tiles[blockIdx.y];
  const Segment segment = a.segments[tile.segment];
  if (channel >= a.channels || segment.state < 0) return;
  const int past = a.C - 1;
  float* edges = a.edges + int64_t{blockIdx.y} * past * a.channels + channel;
  const float* weight = a.weight + int64_t{channel} * a.C;
  for (int t = 0; t < tile.count; ++t) {
    float* at = a.qkvf + (tile.first_row + t) * a.width + channel;
    const float newest = *at;
    float sum = 0;
    for (int i = 0; i < past; ++i) {
      sum += weight[i] * edges[int64_t{(t + i) % past} * a.channels];
    }
    if (past > 0) edges[int64_t{t % past} * a.channels] = newest;
    *at = silu(sum + weight[past] * newest);
  }
  if (tile.first_row + tile.count != segment.first + segment.count) return;
  float* history = history_of(a, segment.state) + channel;
  for (int i = 0; i < past; ++i) {
    history[int64_t{i} * a.channels] = edges[int64_t{(tile.count + i) % past} * a.channels];
  }
}

}  // namespace

void embed(const Launch& how, const TensorView& table, const int32_t* tokens, int64_t count,
           float* x) {
  with_type(table.dtype, [&](auto type) {
    using T = decltype(type);
    launch(how, {.blocks = static_cast<unsigned>(count), .threads = kThreads}, embed_kernel<T>,
           static_cast<const T*>(table.data), tokens, table.shape[1], x);
  });
}

void take_tokens(const Launch& how, const int32_t* drawn, const int32_t* rows, int64_t count,
                 int32_t* tokens) {
  if (count == 0) return;
  launch(how, {.blocks = blocks_for(count), .threads = kThreads}, take_tokens_kernel, drawn, rows,
         count, tokens);
}

void take_rows(const Launch& how, const float* x, const int32_t* rows, int64_t count, int64_t D,
               float* out) {
  launch(how, {.blocks = static_cast<unsigned>(count), .threads = kThreads}, take_rows_kernel, x,
         rows, D, out);
}

void fill(const Launch& how, const Slices& to, float value) {
  if (to.count == 0) return;
  with_type(to.type,
            [&](auto type) { launch(how, grid_for(to), fill_kernel<decltype(type)>, to, value); });
}

void gather(const Launch& how, const Slices& from, float* floats) {
  if (from.count == 0) return;
  with_type(from.type, [&](auto type) {
    launch(how, grid_for(from), gather_kernel<decltype(type)>, from, floats);
  });
}

void scatter(const Launch& how, const float* floats, const Slices& to) {
  if (to.count == 0) return;
  with_type(to.type, [&](auto type) {
    launch(how, grid_for(to), scatter_kernel<decltype(type)>, floats, to);
  });
}

void make_operand(const Launch& how, const Operand& args) {
  with_type(args.type, [&](auto type) {
    using T = decltype(type);
    const int64_t held = args.cols % 4 == 0 ? (args.cols / 4 + kThreads - 1) / kThreads : 0;
    const auto kernel = held == 0 || held > 8 ? operand_kernel<T, 0>
                        : held <= 2           ? operand_kernel<T, 2>
                        : held <= 4           ? operand_kernel<T, 4>
                                              : operand_kernel<T, 8>;
    launch(how, {.blocks = static_cast<unsigned>(args.rows), .threads = kThreads}, kernel, args,
           static_cast<T*>(args.out));
  });
}

void silu_multiply(const Launch& how, const void* gate_up, DType type, int64_t rows, int64_t F,
                   void* out) {
  with_type(type, [&](auto element) {
    using T = decltype(element);
    const int width = F % 4 == 0 ? 4 : 1;
    const auto kernel = width == 4 ? silu_multiply_kernel<T, 4> : silu_multiply_kernel<T, 1>;
    launch(how,
           {.blocks = dim3(blocks_for((F + width - 1) / width), static_cast<unsigned>(rows)),
            .threads = kThreads},
           kernel, static_cast<const T*>(gate_up), static_cast<int>(F), static_cast<T*>(out));
  });
}

void map_heads(const Launch& how, const TensorView& map, int64_t tokens, int64_t width,
               int64_t heads, float* qkvf) {
  const int K = static_cast<int>(map.shape[0]);
  with_type(map.dtype, [&](auto type) {
    using T = decltype(type);
    launch(how,
           {.blocks = dim3(static_cast<unsigned>(heads), static_cast<unsigned>(tokens)),
            .threads = kThreads,
            .shared_bytes = K * sizeof(float)},
           map_heads_kernel<T>, static_cast<const T*>(map.data), K, width, qkvf);
  });
}

void convolve(const Launch& how, const Convolve& args, const Segment* segments,
              const ChunkTile* tiles, int64_t tile_count, float* edges) {
  const ConvolveArgs a{.weight = args.weight.f32(),
                       .qkvf = args.qkvf.f32(),
                       .history = args.history,
                       .edges = edges,
                       .segments = segments,
                       .tiles = tiles,
                       .width = args.qkvf.shape[1],
                       .channels = static_cast<int>(args.weight.shape[0]),
                       .C = static_cast<int>(args.weight.shape[1])};
  const Grid grid{.blocks = dim3(blocks_for(a.channels), static_cast<unsigned>(tile_count)),
                  .threads = kThreads};
  if (a.C > 1) launch(how, grid, save_edges_kernel, a);
  launch(how, grid, convolve_kernel, a);
}

}  // namespace gsa::cuda
