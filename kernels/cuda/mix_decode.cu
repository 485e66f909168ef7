#include "kernels/cuda/mix_decode.cuh"

#include <cooperative_groups.h>

#include <algorithm>
#include <cassert>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/state_vector.cuh"

namespace gsa::cuda {
namespace {

namespace cg = cooperative_groups;

// Threads of a block that has a small memory, or any other one. Small ones leave the second cache
// level first, which makes large ones slower (docs/performance.md).
constexpr int kFewThreads = 128;
constexpr int kManyThreads = 256;
constexpr int64_t kSmallMemory = 64 * 1024;  // bytes of hk and hv of a head
template <int kThreads>
constexpr bool kDrop = kThreads == kFewThreads;

constexpr int kDepth = 8;        // copies under way per thread
constexpr int kMostQueries = 4;  // query heads that read a memory in one pass
constexpr unsigned kMostSplits = 8;

struct Args {
  const float* qkvf;
  void* hk;
  void* hv;
  float* out;
  const DecodeRow* rows;
  int H, G, K, V, M;
  int k_rows, v_columns;  // of one block of a cluster, multiples of the vector width
  float inverse_normalizer;
  FeatureMap map;
};

__device__ __forceinline__ float activate(float x, FeatureMap map) {
  return map == FeatureMap::kSwish ? silu(x) : fmaxf(x, 0.0f);
}

// How a block's threads cover a tile of rows by columns of a memory of T, kWidth columns each:
// thread i has the columns of `column` in rows first, first + step, ...
template <typename T, int kWidth, int kThreads>
struct Tile {
  T* at;  // this thread's first element
  int column, first, step, turns;
  int64_t stride;  // elements from one turn to the next

  __device__ Tile(T* memory, int64_t pitch, int rows, int columns) {
    const int lanes = columns / kWidth;
    first = threadIdx.x / lanes;
    column = (threadIdx.x - first * lanes) * kWidth;
    step = kThreads / lanes;
    turns = first < step && first < rows ? (rows - first + step - 1) / step : 0;
    at = memory + first * pitch + column;
    stride = step * pitch;
  }
};

// A thread's elements of the hk tile and then of the hv tile, as one sequence. Vectors of 16 bytes
// are copied ahead through the thread's own places in shared memory.
template <typename T, int kWidth, int kThreads>
class Stream {
 public:
  using Part = Tile<T, kWidth, kThreads>;

  __device__ Stream(uint4* ring, const Part& hk, const Part& hv)
      : ring_(ring + threadIdx.x),
        next_(hk.at),
        stride_(hk.stride),
        left_(hk.turns),
        hv_(hv),
        policy_(drop_first()) {}

  __device__ __forceinline__ void ask() {
    if constexpr (kWidth > 1) {
      if (left_ == 0 && !in_hv_)
        next_ = hv_.at, stride_ = hv_.stride, left_ = hv_.turns, in_hv_ = true;
      if (left_ > 0) {
        if constexpr (kDrop<kThreads>) {
          copy_async(ring_ + asked_ * kThreads, next_, policy_);
        } else {
          copy_async(ring_ + asked_ * kThreads, next_);
        }
        next_ += stride_;
        --left_;
      }
      copy_commit();
      asked_ = (asked_ + 1) % kDepth;
    }
  }
  // The next element, which stands at `at`.
  __device__ __forceinline__ Vec<kWidth> take(const T* at) {
    if constexpr (kWidth > 1) {
      copy_wait<kDepth - 1>();
      const auto x = load<kWidth>(reinterpret_cast<const T*>(ring_ + asked_ * kThreads));
      ask();
      return x;
    } else {
      return load<kWidth>(at);
    }
  }

 private:
  uint4* ring_;
  const T* next_;
  int64_t stride_;
  int left_;
  int asked_ = 0;
  bool in_hv_ = false;
  const Part& hv_;
  uint64_t policy_;
};

struct Shared {
  float* keep;    // [M]
  float* write;   // [M]
  float* key;     // [k_rows]
  float* value;   // [v_columns]
  float* query;   // [queries, k_rows]
  float* scores;  // [queries, M], this block's share
  float* p;       // [queries, M]
  float* sums;    // [queries, threads * width] for sums over rows

  __device__ Shared(float* at, const Args& a, int queries) {
    keep = at;
    write = keep + a.M;
    key = write + a.M;
    value = key + a.k_rows;
    query = value + a.v_columns;
    scores = query + queries * a.k_rows;
    p = scores + queries * a.M;
    sums = p + queries * a.M;
  }
};

int shared_floats(const Args& a, int queries, int width, int threads) {
  return 2 * a.M + (queries + 1) * a.k_rows + a.v_columns + 2 * queries * a.M +
         queries * threads * width;
}

// Adds up the threads' values of equal columns, for each of `heads` heads; `result(h, column, sum)`
// is called once per sum.
template <int kThreads, int kWidth, int kQueries, typename Result>
__device__ __forceinline__ void sum_rows(const Vec<kWidth> (&mine)[kQueries], int heads, int step,
                                         int columns, float* sums, const Result& result) {
#pragma unroll
  for (int h = 0; h < kQueries; ++h) {
    store(mine[h], sums + (h * kThreads + threadIdx.x) * kWidth);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * columns; i += kThreads) {
    const int h = kQueries == 1 ? 0 : i / columns, c = i - h * columns;
    const float* from = sums + h * kThreads * kWidth + c;
    float sum = 0;
#pragma unroll 8
    for (int r = 0; r < step; ++r, from += columns) sum += *from;
    result(h, c, sum);
  }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
using Cluster = cg::cluster_group;
__device__ __forceinline__ Cluster this_cluster() { return cg::this_cluster(); }
#else
// Devices without clusters have a memory in one block.
struct Cluster {
  __device__ unsigned block_rank() const { return 0; }
  __device__ unsigned num_blocks() const { return 1; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void barrier_arrive() const {}
  __device__ void barrier_wait() const { __syncthreads(); }
  __device__ float* map_shared_rank(float* p, unsigned) const { return p; }
};
__device__ __forceinline__ Cluster this_cluster() { return {}; }
#endif

// A cluster of blocks has one memory of one sequence: block i of it has rows [i k_rows, ...) of hk
// and columns [i v_columns, ...) of hv.
template <typename T, int kWidth, int kQueries, int kThreads>
__global__ void __launch_bounds__(kThreads) decode_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) float shared[];
  const Cluster cluster = this_cluster();
  const int split = cluster.block_rank(), splits = cluster.num_blocks();
  const int g = blockIdx.y, queries = a.H / a.G;
  grid_release();
  const DecodeRow sequence = a.rows[blockIdx.z];
  if (sequence.state < 0) return;

  const int k_begin = min(split * a.k_rows, a.K), k_count = min(a.k_rows, a.K - k_begin);
  const int v_begin = min(split * a.v_columns, a.V), v_count = min(a.v_columns, a.V - v_begin);
  const int64_t memory = int64_t{sequence.state} * a.G + g;
  const Tile<T, kWidth, kThreads> hk(static_cast<T*>(a.hk) + (memory * a.K + k_begin) * a.M, a.M,
                                     k_count, a.M);
  const Tile<T, kWidth, kThreads> hv(static_cast<T*>(a.hv) + memory * a.M * a.V + v_begin, a.V,
                                     v_count > 0 ? a.M : 0, max(v_count, kWidth));
  Stream<T, kWidth, kThreads> stream(reinterpret_cast<uint4*>(shared), hk, hv);
  for (int i = 0; i < kDepth; ++i) stream.ask();
  const Shared s(shared + (kWidth > 1 ? kDepth * kThreads * 4 : 0), a, kQueries);

  grid_wait();
  const int width = a.H * a.K + a.G * (a.K + a.V + a.M);
  const float* q = a.qkvf + int64_t{sequence.row} * width;
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
        const int h = kQueries == 1 ? 0 : i / k_count, c = i - h * k_count;
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
    {
      const Vec<kWidth> keep = load<kWidth>(s.keep + hk.column);
      const Vec<kWidth> write = load<kWidth>(s.write + hk.column);
      const float* key = s.key + hk.first;
      const float* query = s.query + hk.first;
      T* at = hk.at;
      for (int turn = 0; turn < hk.turns; ++turn) {
        Vec<kWidth> x = first ? stream.take(at) : load<kWidth>(at);
        if (first) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) x.v[i] = x.v[i] * keep.v[i] + *key * write.v[i];
          store_rounded<kDrop<kThreads>>(x, at);
        }
#pragma unroll
        for (int h = 0; h < kQueries; ++h) {
          const float value = h < heads ? query[h * a.k_rows] : 0.0f;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) sums[h].v[i] += value * x.v[i];
        }
        at += hk.stride;
        key += hk.step;
        query += hk.step;
      }
    }
    sum_rows<kThreads, kWidth, kQueries>(
        sums, heads, hk.step, a.M, s.sums,
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
      const float scale = 1.0f / warp_sum(total);
      for (int m = lane; m < a.M; m += 32) p[m] *= scale;
    }
    __syncthreads();
    cluster.barrier_arrive();  // this block has read the others' scores

    Vec<kWidth> outputs[kQueries] = {};
    {
      const Vec<kWidth> value = load<kWidth>(s.value + (v_count > 0 ? hv.column : 0));
      const float* p = s.p + hv.first;
      const float* keep = s.keep + hv.first;
      const float* write = s.write + hv.first;
      T* at = hv.at;
      for (int turn = 0; turn < hv.turns; ++turn) {
        Vec<kWidth> x = first ? stream.take(at) : load<kWidth>(at);
        if (first) {
#pragma unroll
          for (int i = 0; i < kWidth; ++i) x.v[i] = x.v[i] * *keep + *write * value.v[i];
          store_rounded<kDrop<kThreads>>(x, at);
        }
#pragma unroll
        for (int h = 0; h < kQueries; ++h) {
          const float weight = h < heads ? p[h * a.M] : 0.0f;
#pragma unroll
          for (int i = 0; i < kWidth; ++i) outputs[h].v[i] += weight * x.v[i];
        }
        at += hv.stride;
        p += hv.step;
        keep += hv.step;
        write += hv.step;
      }
    }
    float* out = a.out + (int64_t{sequence.row} * a.H + g * queries + head) * a.V + v_begin;
    sum_rows<kThreads, kWidth, kQueries>(
        outputs, heads, hv.step, v_count, s.sums,
        [&](int h, int i, float sum) { out[h * a.V + i] = silu(sum); });
    cluster.barrier_wait();  // nobody still reads this block's scores
  }
}

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

template <typename T, int kWidth, int kQueries, int kThreads>
void launch_decode(const Launch& how, Args args, int count, unsigned splits) {
  args.k_rows = round_up((args.K + splits - 1) / splits, 4);
  args.v_columns = round_up((args.V + splits - 1) / splits, std::max(kWidth, 4));
  const size_t bytes = (kWidth > 1 ? kDepth * kThreads * 16 : 0) +
                       shared_floats(args, kQueries, kWidth, kThreads) * sizeof(float);
  static size_t allowed = 0;
  const auto kernel = decode_kernel<T, kWidth, kQueries, kThreads>;
  if (bytes > allowed) allow_shared_memory(kernel, allowed = bytes);
  launch(how,
         {.blocks = dim3(splits, static_cast<unsigned>(args.G), static_cast<unsigned>(count)),
          .threads = kThreads,
          .shared_bytes = bytes,
          .cluster = splits},
         kernel, args);
}

template <typename T, int kWidth, int kThreads>
void choose_decode(const Launch& how, const Args& args, int count, unsigned splits) {
  const int queries = args.H / args.G;
  if (queries == 1) return launch_decode<T, kWidth, 1, kThreads>(how, args, count, splits);
  if (queries == 2) return launch_decode<T, kWidth, 2, kThreads>(how, args, count, splits);
  launch_decode<T, kWidth, kMostQueries, kThreads>(how, args, count, splits);
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
  with_type(mix.state_type, [&](auto type) {
    using T = decltype(type);
    constexpr int kWidth = 16 / sizeof(T);
    if (shape.M % kWidth == 0 && shape.V % kWidth == 0) {
      const int64_t bytes = shape.M * (shape.K + shape.V) * static_cast<int64_t>(sizeof(T));
      // A block must have a thread for every vector of a row; M is never too large for that.
      const bool small = bytes <= kSmallMemory && shape.V <= int64_t{kFewThreads} * kWidth;
      return small ? choose_decode<T, kWidth, kFewThreads>(how, args, count, splits)
                   : choose_decode<T, kWidth, kManyThreads>(how, args, count, splits);
    }
    // A block has no more columns than threads then.
    unsigned least = splits;
    while (shape.V > int64_t{kManyThreads} * least) least *= 2;
    choose_decode<T, 1, kManyThreads>(how, args, count, least);
  });
}

}  // namespace gsa::cuda
