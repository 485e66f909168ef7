// What the warps of a persistent kernel's block share, and those that copy weights.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/stream_exchange.cuh"
#include "kernels/cuda/stream_plan.h"

namespace gsa::cuda {

// Where a block's weights wait for their use.
struct Ring {
  unsigned char* stages;
  uint64_t* full;
  uint64_t* empty;
  int size;
  int slot = 0;
  uint32_t parity = 0;

  // REQUIRES: stages <= size
  __device__ void advance(int stages) {
    slot += stages;
    if (slot >= size) slot -= size, parity ^= 1;
  }
};

// What all warps of a block find in shared memory.
struct Tables {
  const StreamShare* shares;  // [kHead + 1]
  const StreamLayer* layers;  // [layer_count + 1]
  const StreamUnit* units;    // [block_units]
  const int* inputs;          // [block_units][inputs], offsets in qkvf

  // Calls product(which, share, layer index) for every product of a step in order.
  template <typename Product>
  __device__ __forceinline__ void for_products(int layer_count, const Product& product) const {
    const int count = layer_count * kLayerProducts;
#pragma unroll 1
    for (int i = 0; i <= count; ++i) {
      const int which = i == count ? kHead : i % kLayerProducts;
      product(which, shares[which], i / kLayerProducts);
    }
  }
};

__device__ __forceinline__ int log2_of(int power) { return 31 - __clz(power); }

// Fills in a block's unit number `i` and where in qkvf its inputs are; by all threads of a warp.
__device__ __forceinline__ void find_unit(const StreamStep& a, const StreamPlan& plan, int i,
                                          StreamUnit& unit, int* inputs) {
  const int index = blockIdx.x + i * gridDim.x;
  if (index >= plan.units) return;
  const int head = index / plan.splits, split = index % plan.splits;
  const int g = head % a.G, queries = a.H / a.G;
  const DecodeRow sequence = a.rows[head / a.G];
  if (threadIdx.x % 32 == 0) {
    const int64_t state = sequence.state * a.state_stride;
    unit = {.hk = state + (g * a.K + split * plan.k_rows) * a.M,
            .hv = state + g * a.M * a.V + split * plan.v_columns,
            .scores = head * plan.splits * queries * a.M,
            .split = split,
            .out = (sequence.row * a.H + g * queries) * a.V + split * plan.v_columns};
  }
  const int row = sequence.row * plan.shares[kQkvf].outputs;
#pragma unroll 1
  for (int n = threadIdx.x % 32; n < plan.inputs; n += 32) {
    int c = n - a.M;
    if (c < 0) {
      inputs[n] = row + (a.H + a.G) * a.K + a.G * a.V + g * a.M + n;
    } else if (c < plan.k_rows) {
      inputs[n] = row + (a.H + g) * a.K + split * plan.k_rows + c;
    } else if (c < (1 + queries) * plan.k_rows) {
      c -= plan.k_rows;
      inputs[n] =
          row + (g * queries + c / plan.k_rows) * a.K + split * plan.k_rows + c % plan.k_rows;
    } else {
      c -= (1 + queries) * plan.k_rows;
      inputs[n] = row + (a.H + a.G) * a.K + g * a.V + split * plan.v_columns + c;
    }
  }
}

// The warps that copy: all weights of the block's share of a step, in the order of their use.
class StreamCopier {
 public:
  __device__ StreamCopier(const StreamStep& a, const StreamPlan& plan, const Tables& tables,
                          const Ring& ring)
      : a_(a), plan_(plan), tables_(tables), ring_(ring), landed_(ring), policy_(drop_first()) {
    landed_.advance(member_);
  }

  __device__ void run() {
    tables_.for_products(a_.layer_count, [&](int which, const StreamShare& share, int layer) {
      if (which == kQkvf) prefetch_layer(tables_.layers[layer]);
      stream(share, tables_.layers[layer].weight[which % kLayerProducts]);
    });
  }

 private:
  __device__ __forceinline__ void stream(const StreamShare& s, const __nv_bfloat16* weight) {
    weight += int64_t{s.first} * s.cols;
#pragma unroll 1
    for (int group = 0; group < s.tiles; group += s.group_tiles) {
      const int end = min(group + s.group_tiles, s.tiles) * s.kinds;
#pragma unroll 1
      for (int panel = 0; panel < s.cols; panel += s.panel) {
        const int panel_end = min(panel + s.panel, s.cols);
#pragma unroll 1
        for (int column = panel; column < panel_end; column += s.piece) {
          const uint32_t bytes = min(s.piece, panel_end - column) * 2;
#pragma unroll 1
          for (int tile = group * s.kinds; tile < end; ++tile) {
            if (my_turn()) copy(s, weight + column, tile, bytes);
            ring_.advance(1);
          }
        }
      }
    }
  }

  // The warps take the stages in turn.
  __device__ __forceinline__ bool my_turn() const { return ring_.slot % kCopyWarps == member_; }

  // A stage: `bytes` of each row of a tile, from the column that `weight` points to.
  __device__ __forceinline__ void copy(const StreamShare& s, const __nv_bfloat16* weight, int tile,
                                       uint32_t bytes) {
    const int begin = (s.kinds == 2 ? tile / 2 : tile) * kTileRows;
    const int rows = min(kTileRows, s.count - begin);
    const __nv_bfloat16* from =
        weight + int64_t{begin + (s.kinds == 2 && tile % 2 == 1 ? s.outputs : 0)} * s.cols;
    if (under_way_ == plan_.flight) {
      Barrier{ring_.full + landed_.slot}.wait(landed_.parity);
      landed_.advance(kCopyWarps);
      --under_way_;
    }
    ++under_way_;
    const Barrier full{ring_.full + ring_.slot};
    Barrier{ring_.empty + ring_.slot}.wait(ring_.parity ^ 1);
    if (lane_ == 0) full.arrive_and_expect(bytes * rows);
    __syncwarp();
    if (lane_ < rows) {
      copy_bulk(ring_.stages + ring_.slot * kStageBytes + lane_ * kStagePitch,
                from + int64_t{lane_} * s.cols, bytes, full, policy_);
    }
  }

  // What the layer needs besides weights, asked for a little before its use.
  __device__ __forceinline__ void prefetch_layer(const StreamLayer& layer) {
    const int lane = member_ * 32 + lane_;
#pragma unroll 1
    for (int which = kQkvf; which < kLayerProducts; ++which) {
      const int at = (blockIdx.x + gridDim.x * lane) * 32;
      if (layer.norm[which] != nullptr && at < tables_.shares[which].cols) {
        prefetch(layer.norm[which] + at);
      }
    }
#pragma unroll 1
    for (int i = 0; blockIdx.x + i * gridDim.x < plan_.units; ++i) {
      const float* hk = layer.hk + tables_.units[i].hk;
      for (int at = lane * 32; at < plan_.k_rows * a_.M; at += kCopyWarps * 32 * 32) {
        prefetch(hk + at);
      }
      const float* hv = layer.hv + tables_.units[i].hv;
      for (int m = lane; m < a_.M; m += kCopyWarps * 32) {
        for (int at = 0; at < plan_.v_columns; at += 32) prefetch(hv + m * a_.V + at);
      }
    }
  }

  const StreamStep& a_;
  const StreamPlan& plan_;
  const Tables tables_;
  Ring ring_, landed_;
  const int member_ = threadIdx.x / 32 - kStreamWarps, lane_ = threadIdx.x % 32;
  int under_way_ = 0;
  uint64_t policy_;
};

}  // namespace gsa::cuda
