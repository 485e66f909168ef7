// What the warps of a persistent kernel's block share, and those that copy weights.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/stream_exchange.cuh"
#include "kernels/cuda/stream_matrices.h"
#include "kernels/cuda/stream_plan.h"

namespace gsa::cuda {

// Where a block's weights wait for their use. The warps that compute take the stages in turn; a
// place in the ring is not always the same warp's. So that the parity of a place tells its phases
// apart, what was there before must have landed when a warp comes for the next: the ring has at
// least as many stages as there are warps and copies under way.
struct Ring {
  unsigned char* stages;
  uint64_t* full;
  uint64_t* empty;
  int size;
  int slot = 0;
  uint32_t parity = 0;

  // REQUIRES: stages <= size
  __device__ __forceinline__ void advance(int stages) {
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

// The warp that copies: all weights of the block's share of a step, in the order of their use.
class StreamCopier {
 public:
  __device__ StreamCopier(const StreamStep& a, const StreamPlan& plan, const Tables& tables,
                          const Ring& ring)
      : a_(a), plan_(plan), tables_(tables), ring_(ring), landed_(ring), policy_(drop_first()) {}

  __device__ void run() {
    const CUtensorMap* matrix = a_.matrices;
    tables_.for_products(a_.layer_count, [&](int which, const StreamShare& share, int layer) {
      if (which != kHead) prefetch_matrix(matrix + 1);
      if (which == kQkvf) prefetch_layer(tables_.layers[layer]);
      stream(share, matrix++);
    });
  }

 private:
  __device__ __forceinline__ void stream(const StreamShare& s, const CUtensorMap* matrix) {
#pragma unroll 1
    for (int group = 0; group < s.tiles; group += s.group_tiles) {
      const int end = min(group + s.group_tiles, s.tiles);
#pragma unroll 1
      for (int piece = 0; piece < s.pieces; ++piece) {
#pragma unroll 1
        for (int tile = group; tile < end; ++tile) {
          for (int kind = 0; kind < s.kinds; ++kind) {
            copy(matrix, s.first + s.begin_of(tile) + kind * s.outputs, piece,
                 s.tile_rows * kPiece * 2);
          }
        }
      }
    }
  }

  __device__ __forceinline__ void copy(const CUtensorMap* matrix, int row, int piece,
                                       uint32_t bytes) {
    if (under_way_ == plan_.flight) {
      Barrier{ring_.full + landed_.slot}.wait(landed_.parity);
      landed_.advance(1);
      --under_way_;
    }
    ++under_way_;
    const Barrier full{ring_.full + ring_.slot};
    Barrier{ring_.empty + ring_.slot}.wait(ring_.parity ^ 1);
    if (lane_ == 0) {
      full.arrive_and_expect(bytes);
      copy_box(ring_.stages + ring_.slot * kStageBytes, matrix, row, piece * (kPiece / kBoxColumns),
               full, policy_);
    }
    ring_.advance(1);
  }

  // What the layer needs besides weights, asked for a little before its use.
  __device__ __forceinline__ void prefetch_layer(const StreamLayer& layer) {
#pragma unroll 1
    for (int which = kQkvf; which < kLayerProducts; ++which) {
      const int at = (blockIdx.x + gridDim.x * lane_) * 32;
      if (layer.norm[which] != nullptr && at < tables_.shares[which].cols) {
        prefetch(layer.norm[which] + at);
      }
    }
#pragma unroll 1
    for (int i = 0; blockIdx.x + i * gridDim.x < plan_.units; ++i) {
      const float* hk = layer.hk + tables_.units[i].hk;
      for (int at = lane_ * 32; at < plan_.k_rows * a_.M; at += 32 * 32) prefetch(hk + at);
      const float* hv = layer.hv + tables_.units[i].hv;
      for (int m = lane_; m < a_.M; m += 32) {
        for (int at = 0; at < plan_.v_columns; at += 32) prefetch(hv + m * a_.V + at);
      }
    }
  }

  const StreamStep& a_;
  const StreamPlan& plan_;
  const Tables tables_;
  Ring ring_, landed_;
  const int lane_ = threadIdx.x % 32;
  int under_way_ = 0;
  uint64_t policy_;
};

}  // namespace gsa::cuda
