// The recurrence inside of a persistent kernel.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/stream_exchange.cuh"
#include "kernels/cuda/stream_math.cuh"

namespace gsa::cuda {

// Vectors of a memory that a thread holds, and where they are: of the rest `at` is null.
template <int kHeld>
struct Vectors {
  float4 x[kHeld];
  float* at[kHeld];
  int row[kHeld];
};

// A unit's part of a memory, of whose vectors a thread has every kStreamThreads-th.
struct Part {
  float* at;
  int shift;  // base 2 logarithm of the vectors of a row
  int count;  // of all rows
  int pitch;

  __device__ __forceinline__ int column() const { return (threadIdx.x & ((1 << shift) - 1)) * 4; }
  // Reads this thread's vectors from number `begin` of all on.
  template <int kHeld>
  __device__ __forceinline__ void load(int begin, Vectors<kHeld>& held) const {
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      const int i = begin + threadIdx.x + n * kStreamThreads;
      held.row[n] = i >> shift;
      held.at[n] = i < count ? at + held.row[n] * pitch + column() : nullptr;
      if (held.at[n] != nullptr) held.x[n] = load4(held.at[n]);
    }
  }
};

__device__ __forceinline__ void multiply_add(float4& sum, float w, const float4& x) {
  sum.x += w * x.x, sum.y += w * x.y, sum.z += w * x.z, sum.w += w * x.w;
}

// The GSA recurrence of a step (Backend::mix).
template <int kTokens>
class StreamRecurrence {
 public:
  __device__ StreamRecurrence(const StreamStep& a, const StreamPlan& plan, unsigned char* shared)
      : a_(a),
        plan_(plan),
        mix_(reinterpret_cast<float*>(shared + plan.mix)),
        partial_(reinterpret_cast<float*>(shared + plan.partial)) {}

  // The recurrence for a unit. Both memories change alike: x = x * keep + a (x) b, and are read by
  // a weight for each row; of hk, rows are keys and columns slots, of hv the other way round.
  __device__ __forceinline__ void mix(const StreamLayer& layer, uint32_t epoch,
                                      const StreamUnit& unit, const int* inputs) {
    const int M = a_.M, queries = a_.H / a_.G, k_rows = plan_.k_rows, v_columns = plan_.v_columns;
    Part part{layer.hk + unit.hk, log2_of(M) - 2, k_rows * M / 4, M};
    const Part hv{layer.hv + unit.hv, log2_of(v_columns) - 2, M * v_columns / 4, a_.V};
    Vectors<kHeld> held, held_v;
    part.load(0, held);
    hv.load(0, held_v);

    float* keep = mix_;            // [M]
    float* write = keep + M;       // [M]
    float* p = write + M;          // [queries][M]
    float* key = p + queries * M;  // [k_rows]
    float* query = key + k_rows;   // [queries][k_rows]
    float* value = query + queries * k_rows;
    const int q_end = M + (1 + queries) * k_rows;
#pragma unroll 1
    for (int i = threadIdx.x; i < plan_.inputs; i += kStreamThreads) {
      const float x = receive(a_.qkvf + inputs[i], epoch);
      if (i < M) {
        const float log_keep = log_gate(x, a_.inverse_normalizer);
        keep[i] = keep_of(log_keep);
        write[i] = write_of(log_keep);
      } else {
        key[i - M] = a_.map == FeatureMap::kRelu && i < q_end ? fmaxf(x, 0.0f) : silu(x);
      }
    }
    stream_sync();

    float* sums = partial_;  // [kStreamWarps][queries][columns]
#pragma unroll 1
    for (int pass = 0;; ++pass) {
      const bool second = pass == 1;
      const float* by_row = second ? write : key;
      const float* weight = second ? p : query;
      const int weight_pitch = second ? M : k_rows;
      const float4 by_column = load4((second ? value : write) + part.column());
      float4 kept = load4(keep + (second ? 0 : part.column()));
      float4 totals[kMostQueries] = {};
#pragma unroll 1
      for (int begin = 0; begin < part.count; begin += kHeld * kStreamThreads) {
        if (begin > 0) part.load(begin, held);
#pragma unroll
        for (int n = 0; n < kHeld; ++n) {
          if (held.at[n] == nullptr) break;
          const int row = held.row[n];
          if (second) kept = make_float4(keep[row], keep[row], keep[row], keep[row]);
          const float w = by_row[row];
          float4 x = held.x[n];
          x = make_float4(x.x * kept.x + w * by_column.x, x.y * kept.y + w * by_column.y,
                          x.z * kept.z + w * by_column.z, x.w * kept.w + w * by_column.w);
          *reinterpret_cast<float4*>(held.at[n]) = x;
#pragma unroll
          for (int h = 0; h < kMostQueries; ++h) {
            if (h < queries) multiply_add(totals[h], weight[h * weight_pitch + row], x);
          }
        }
      }
#pragma unroll 1
      for (int h = 0; h < queries; ++h) {
        fold(totals[0], part.shift, sums + (h << part.shift) * 4, (queries << part.shift) * 4);
#pragma unroll
        for (int i = 1; i < kMostQueries; ++i) totals[i - 1] = totals[i];
      }
      stream_sync();
      if (second) break;
      float* scores = a_.scores + unit.scores;
#pragma unroll 1
      for (int i = threadIdx.x; i < queries * M; i += kStreamThreads) {
        publish(scores + unit.split * queries * M + i, folded(sums + i, queries * M), epoch);
      }
      softmax(scores, epoch, sums + queries * M * kStreamWarps, p);
      part = hv;
      held = held_v;
    }
    float* out = a_.mixed + unit.out;
#pragma unroll 1
    for (int i = threadIdx.x; i < queries * v_columns; i += kStreamThreads) {
      const int h = i >> (hv.shift + 2), c = i & (v_columns - 1);
      publish_all<kReplicas>(out + h * a_.V + c, a_.T * a_.H * a_.V,
                             silu(folded(sums + i, queries * v_columns)), epoch);
    }
  }

 private:
  // Every unit of a head adds up the shares of all and has the whole softmax: a warp for each
  // query.
  __device__ __forceinline__ void softmax(float* scores, uint32_t epoch, float* sums, float* p) {
    const int M = a_.M, queries = a_.H / a_.G;
    const int share = queries * M / 4, shares = plan_.splits * share;
    float4 total = {};
#pragma unroll 1
    for (int begin = threadIdx.x; begin < shares; begin += kHeld * kStreamThreads) {
      uint4 seen[kHeld];
      const float* from = scores + begin * 4;
      receive_all(
          seen, epoch, [&](int n) { return begin + n * kStreamThreads < shares; },
          [&](int n) { return from + n * kStreamThreads * 4; });
#pragma unroll
      for (int n = 0; n < kHeld; ++n) {
        if (begin + n * kStreamThreads < shares) multiply_add(total, 1.0f, values_of(seen[n]));
      }
    }
    fold(total, log2_of(share), sums, queries * M);
    stream_sync();
    if (warp_ < queries) {
      float* mine = p + warp_ * M;
      float most = -INFINITY, sum = 0;
#pragma unroll 1
      for (int m = lane_; m < M; m += 32) {
        mine[m] = folded(sums + warp_ * M + m, queries * M);
        most = fmaxf(most, mine[m]);
      }
      most = warp_max(most);
#pragma unroll 1
      for (int m = lane_; m < M; m += 32) sum += mine[m] = expf(mine[m] - most);
      const float scale = __fdividef(1.0f, warp_sum(sum));
#pragma unroll 1
      for (int m = lane_; m < M; m += 32) mine[m] *= scale;
    }
    stream_sync();
  }

  static constexpr int kHeld = kTokens <= 2 ? 2 : 4;  // vectors that a thread holds at a time

  const StreamStep& a_;
  const StreamPlan& plan_;
  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;
  float* mix_;      // see mix()
  float* partial_;  // for sums over rows
};

}  // namespace gsa::cuda
