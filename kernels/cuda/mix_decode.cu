#include "kernels/cuda/mix_decode.cuh"

#include <cooperative_groups.h>

#include <algorithm>
#include <cassert>

#include "kernels/cuda/device.cuh"

namespace gsa::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr int kDepth = 8;    // copies under way per thread
constexpr int kQueries = 4;  // query heads that read a memory in one pass
constexpr unsigned kMostSplits = 8;

struct Args {
  const float* qkvf;
  float* hk;
  float* hv;
  float* out;
  const DecodeRow* rows;
  int64_t state_stride;
  int H, G, K, V, M;
  int k_rows, v_columns;  // of one block of a cluster, multiples of the vector width
  float inverse_normalizer;
  FeatureMap map;
};

__device__ __forceinline__ float activate(float x, FeatureMap map) {
  return map == FeatureMap::kSwish ? silu(x) : fmaxf(x, 0.0f);
}

// kWidth consecutive floats.
template <int kWidth>
struct Vec {
  float v[kWidth];
};

template <int kWidth>
__device__ __forceinline__ Vec<kWidth> load(const float* p) {
  Vec<kWidth> x;
  if constexpr (kWidth == 4) {
    const float4 f = *reinterpret_cast<const float4*>(p);
    x.v[0] = f.x, x.v[1] = f.y, x.v[2] = f.z, x.v[3] = f.w;
  } else {
    x.v[0] = *p;
  }
  return x;
}

template <int kWidth>
__device__ __forceinline__ void store(const Vec<kWidth>& x, float* p) {
  if constexpr (kWidth == 4) {
    *reinterpret_cast<float4*>(p) = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  } else {
    *p = x.v[0];
  }
}

// How a block's threads cover a tile of rows by columns of a memory, kWidth columns each: thread i
// has the columns of `column` in rows first, first + step, ...
template <int kWidth>
struct Tile {
  float* origin;
  int64_t pitch;
  int rows, column, first, step;
  bool active;

  __device__ Tile(float* memory, int64_t pitch, int rows, int columns)
      : origin(memory), pitch(pitch), rows(rows) {
    const int lanes = columns / kWidth;
    column = threadIdx.x % lanes * kWidth;
    first = threadIdx.x / lanes;
    step = kThreads / lanes;
    active = first < step;
  }
  __device__ int turns() const {
    return active && first < rows ? (rows - first + step - 1) / step : 0;
  }
  __device__ int row(int turn) const { return first + turn * step; }
  __device__ float* at(int turn) const { return origin + row(turn) * pitch + column; }
};

// A thread's elements of the hk tile and then of the hv tile, as one sequence that is copied ahead
// through the thread's own places in shared memory.
template <int kWidth>
struct Stream {
  static constexpr bool kAhead = kWidth == 4;
  float4* ring;
  const Tile<kWidth>& hk;
  const Tile<kWidth>& hv;
  int copied = 0, taken = 0;

  __device__ Stream(float4* ring, const Tile<kWidth>& hk, const Tile<kWidth>& hv)
      : ring(ring + threadIdx.x), hk(hk), hv(hv) {}

  __device__ float* at(int i) const {
    const int n = hk.turns();
    return i < n ? hk.at(i) : hv.at(i - n);
  }
  __device__ void copy() {
    if constexpr (kAhead) {
      if (copied < hk.turns() + hv.turns()) {
        copy_async(ring + copied % kDepth * kThreads, at(copied));
      }
      copy_commit();
      ++copied;
    }
  }
  __device__ Vec<kWidth> take() {
    if constexpr (kAhead) {
      copy_wait<kDepth - 1>();
      const Vec<kWidth> x =
          load<kWidth>(reinterpret_cast<const float*>(ring + taken % kDepth * kThreads));
      ++taken;
      copy();
      return x;
    } else {
      return load<kWidth>(at(taken++));
    }
  }
};

struct Shared {
  float* keep;    // [M]
  float* write;   // [M]
  float* key;     // [k_rows]
  float* value;   // [v_columns]
  float* query;   // [kQueries, k_rows]
  float* scores;  // [kQueries, M], this block's share
  float* p;       // [kQueries, M]
  float* sums;    // [kQueries, kThreads * width] for sums over rows

  __device__ Shared(float* at, const Args& a) {
    keep = at;
    write = keep + a.M;
    key = write + a.M;
    value = key + a.k_rows;
    query = value + a.v_columns;
    scores = query + kQueries * a.k_rows;
    p = scores + kQueries * a.M;
    sums = p + kQueries * a.M;
  }
};

int shared_floats(const Args& a, int width) {
  return 2 * a.M + (kQueries + 1) * a.k_rows + a.v_columns + 2 * kQueries * a.M +
         kQueries * kThreads * width;
}

// Adds up the threads' values of equal columns, for each of `heads` heads; `result(h, column, sum)`
// is called once per sum.
template <int kWidth, typename Result>
__device__ __forceinline__ void sum_rows(const Vec<kWidth> (&mine)[kQueries], int heads,
                                         const Tile<kWidth>& tile, int columns, float* sums,
                                         const Result& result) {
#pragma unroll
  for (int h = 0; h < kQueries; ++h) {
    if (h < heads) store<kWidth>(mine[h], sums + (h * kThreads + threadIdx.x) * kWidth);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * columns; i += kThreads) {
    const int h = i / columns, c = i % columns;
    const float* from = sums + h * kThreads * kWidth + c;
    float sum = 0;
#pragma unroll 8
    for (int r = 0; r < tile.step; ++r) sum += from[r * columns];
    result(h, c, sum);
  }
}

// A cluster of blocks has one memory of one sequence: block i of it has rows [i k_rows, ...) of hk
// and columns [i v_columns, ...) of hv.
template <int kWidth>
__global__ void __launch_bounds__(kThreads) decode_kernel(Args a) {
  extern __shared__ __align__(16) float shared[];
  const cg::cluster_group cluster = cg::this_cluster();
  const int split = cluster.block_rank(), splits = cluster.num_blocks();
  const int g = blockIdx.y, queries = a.H / a.G;
  grid_release();
  const DecodeRow sequence = a.rows[blockIdx.z];
  if (sequence.state < 0) return;

  const int k_begin = min(split * a.k_rows, a.K), k_count = min(a.k_rows, a.K - k_begin);
  const int v_begin = min(split * a.v_columns, a.V), v_count = min(a.v_columns, a.V - v_begin);
  const int64_t state = sequence.state * a.state_stride;
  const Tile<kWidth> hk(a.hk + state + (int64_t{g} * a.K + k_begin) * a.M, a.M, k_count, a.M);
  const Tile<kWidth> hv(a.hv + state + int64_t{g} * a.M * a.V + v_begin, a.V, v_count > 0 ? a.M : 0,
                        max(v_count, kWidth));
  Stream<kWidth> stream(reinterpret_cast<float4*>(shared), hk, hv);
  for (int i = 0; i < kDepth; ++i) stream.copy();
  const Shared s(shared + (kWidth == 4 ? kDepth * kThreads * 4 : 0), a);

  grid_wait();
  const int64_t width = int64_t{a.H} * a.K + int64_t{a.G} * (a.K + a.V + a.M);
  const float* q = a.qkvf + sequence.row * width;
  const float* k = q + a.H * a.K + g * a.K + k_begin;
  const float* v = q + (a.H + a.G) * a.K + g * a.V + v_begin;
  const float* f = q + (a.H + a.G) * a.K + a.G * a.V + g * a.M;
  q += g * queries * a.K + k_begin;

  for (int head = 0; head < queries; head += kQueries) {
    const int heads = min(kQueries, queries - head);
    const bool first = head == 0;  // the pass that writes the memories
    // One loop for all of them, so that a thread waits once.
    const int q_end = heads * k_count, f_end = q_end + a.M, k_end = f_end + k_count;
    for (int i = threadIdx.x; i < (first ? k_end + v_count : q_end); i += kThreads) {
      if (i < q_end) {
        const int h = i / k_count, c = i - h * k_count;
        s.query[h * a.k_rows + c] = activate(q[(head + h) * a.K + c], a.map);
      } else if (i < f_end) {
        const float log_keep = log_gate(f[i - q_end], a.inverse_normalizer);
        s.keep[i - q_end] = keep_of(log_keep);
        s.write[i - q_end] = write_of(log_keep);
      } else if (i < k_end) {
        s.key[i - f_end] = activate(k[i - f_end], a.map);
      } else {
        s.value[i - k_end] = silu(v[i - k_end]);
      }
    }
    __syncthreads();

    Vec<kWidth> sums[kQueries] = {};
    for (int turn = 0; turn < hk.turns(); ++turn) {
      Vec<kWidth> x = first ? stream.take() : load<kWidth>(hk.at(turn));
      if (first) {
        const float key = s.key[hk.row(turn)];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          x.v[i] = x.v[i] * s.keep[hk.column + i] + key * s.write[hk.column + i];
        }
        store<kWidth>(x, hk.at(turn));
      }
#pragma unroll
      for (int h = 0; h < kQueries; ++h) {
        if (h >= heads) break;
        const float query = s.query[h * a.k_rows + hk.row(turn)];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[h].v[i] += query * x.v[i];
      }
    }
    sum_rows<kWidth>(sums, heads, hk, a.M, s.sums,
                     [&](int h, int m, float sum) { s.scores[h * a.M + m] = sum; });
    cluster.sync();

    // Every block adds up all shares and has the whole softmax: a warp for each head.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp < heads) {
      float* p = s.p + warp * a.M;
      float most = -INFINITY, total = 0;
      for (int m = lane; m < a.M; m += 32) {
        float sum = 0;
#pragma unroll 8
        for (int b = 0; b < splits; ++b) {
          sum += cluster.map_shared_rank(s.scores, b)[warp * a.M + m];
        }
        p[m] = sum;
        most = fmaxf(most, sum);
      }
      most = warp_max(most);
      for (int m = lane; m < a.M; m += 32) total += p[m] = expf(p[m] - most);
      total = warp_sum(total);
      for (int m = lane; m < a.M; m += 32) p[m] /= total;
    }
    __syncthreads();
    cluster.barrier_arrive();  // this block has read the others' scores

    Vec<kWidth> outputs[kQueries] = {};
    for (int turn = 0; turn < hv.turns(); ++turn) {
      Vec<kWidth> x = first ? stream.take() : load<kWidth>(hv.at(turn));
      const int m = hv.row(turn);
      if (first) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          x.v[i] = x.v[i] * s.keep[m] + s.write[m] * s.value[hv.column + i];
        }
        store<kWidth>(x, hv.at(turn));
      }
#pragma unroll
      for (int h = 0; h < kQueries; ++h) {
        if (h >= heads) break;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) outputs[h].v[i] += s.p[h * a.M + m] * x.v[i];
      }
    }
    float* out = a.out + (int64_t{sequence.row} * a.H + g * queries + head) * a.V + v_begin;
    sum_rows<kWidth>(outputs, heads, hv, v_count, s.sums,
                     [&](int h, int i, float sum) { out[h * a.V + i] = silu(sum); });
    cluster.barrier_wait();  // nobody still reads this block's scores
  }
}

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

template <int kWidth>
void launch_decode(const Launch& how, Args args, int count, unsigned splits) {
  args.k_rows = round_up((args.K + splits - 1) / splits, kWidth);
  args.v_columns = round_up((args.V + splits - 1) / splits, kWidth);
  const size_t bytes =
      (kWidth == 4 ? kDepth * kThreads * 16 : 0) + shared_floats(args, kWidth) * sizeof(float);
  static size_t allowed = 0;
  if (bytes > allowed) allow_shared_memory(decode_kernel<kWidth>, allowed = bytes);
  launch(how,
         {.blocks = dim3(splits, static_cast<unsigned>(args.G), static_cast<unsigned>(count)),
          .threads = kThreads,
          .shared_bytes = bytes,
          .cluster = splits},
         decode_kernel<kWidth>, args);
}

}  // namespace

void mix_decode(const Launch& how, const Mix& mix, const DecodeRow* rows, int count) {
  if (count == 0) return;
  const MixShape& shape = mix.shape;
  const Args args{.qkvf = mix.qkvf.f32(),
                  .hk = mix.hk,
                  .hv = mix.hv,
                  .out = mix.out.f32(),
                  .rows = rows,
                  .state_stride = mix.state_stride,
                  .H = static_cast<int>(shape.H),
                  .G = static_cast<int>(shape.G),
                  .K = static_cast<int>(shape.K),
                  .V = static_cast<int>(shape.V),
                  .M = static_cast<int>(shape.M),
                  .k_rows = 0,
                  .v_columns = 0,
                  .inverse_normalizer = static_cast<float>(1 / mix.normalizer),
                  .map = mix.feature_map};
  assert(args.K <= 1024 && args.V <= 1024 && args.M <= 256);
  // Enough blocks for every multiprocessor, and each with some rows and columns to do.
  unsigned splits = 1;
  while (how.clusters && splits < kMostSplits &&
         int64_t{count} * shape.G * splits < how.multiprocessors &&
         std::min(shape.K, shape.V) >= 16 * static_cast<int64_t>(splits)) {
    splits *= 2;
  }
  if (shape.M % 4 == 0 && shape.V % 4 == 0) return launch_decode<4>(how, args, count, splits);
  launch_decode<1>(how, args, count, splits);
}

}  // namespace gsa::cuda
