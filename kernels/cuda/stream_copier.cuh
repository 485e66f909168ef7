// What the warps of a persistent kernel's block share, and those that copy weights.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/stream_exchange.cuh"
#include "kernels/cuda/stream_matrices.h"
#include "kernels/cuda/stream_plan.h"

namespace gsa::cuda {

// Where a block's weights wait for their use. The warps that compute take the stages in turn, so
// that a place is not always the same warp's, and one may come to a place before what stood there
// earlier has been copied. The barriers that say that a place is full are therefore two for each,
// which take turns: then a phase is never mistaken for the one before it.
// REQUIRES: at least as many stages as there are warps.
struct Ring {
  unsigned char* stages;
  uint64_t* full;   // [2][size]
  uint64_t* empty;  // [size]
  int size;
  int stage_bytes;
  int slot = 0;
  uint32_t round = 0;

  // REQUIRES: stages <= size
  __device__ __forceinline__ void advance(int stages) {
    slot += stages;
    if (slot >= size) slot -= size, ++round;
  }
  __device__ __forceinline__ unsigned char* stage() const { return stages + slot * stage_bytes; }
  __device__ __forceinline__ Barrier full_barrier() const {
    return {full + (round % 2) * size + slot};
  }
  __device__ __forceinline__ Barrier empty_barrier() const { return {empty + slot}; }
  __device__ __forceinline__ void wait_full() const { full_barrier().wait(round / 2 % 2); }
  __device__ __forceinline__ void wait_empty() const { empty_barrier().wait(round % 2 ^ 1); }
};

// Whether a stage of small weights, of a tile that begins with this one of the block's outputs, has
// two rows of tiles.
__device__ __forceinline__ bool has_lower(const StreamShare& s, int begin) {
  return s.gated || begin + SmallTile::kRows < s.count;
}

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
  const int row = sequence.row * plan.shares[kQkvf].stride;
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
template <DType kType>
class StreamCopier {
 public:
  __device__ StreamCopier(const StreamStep& a, const StreamPlan& plan, const Tables& tables,
                          const Ring& ring)
      : a_(a), plan_(plan), tables_(tables), ring_(ring), landed_(ring), policy_(drop_first()) {}

  __device__ void run() {
    const CUtensorMap* matrix = a_.matrices;
    tables_.for_products(a_.layer_count, [&](int which, const StreamShare& share, int l) {
      const StreamLayer& layer = tables_.layers[l];
      if (which == kQkvf) prefetch_layer(layer);
      if (lane_ == 0) {
        if (which != kHead) prefetch_matrix(matrix + 1);
        const auto* weight =
            static_cast<const unsigned char*>(layer.weight[which % kLayerProducts]);
        if (kSmall<kType> && which != kApart) {
          stream<kSmall<kType>>(share, matrix, weight);
        } else {
          stream<false>(share, matrix, weight);
        }
      }
      ++matrix;
      __syncwarp();
    });
  }

 private:
  // One thread issues all copies of a product, and memory is no busier than it is quick: what a
  // stage needs is in registers.
  template <bool kSmall>
  __device__ __forceinline__ void stream(const StreamShare& share, const CUtensorMap* matrix,
                                         const unsigned char* weight) {
    const StreamShare s = share;
    const int across = (s.cols + SmallTile::kColumns - 1) / SmallTile::kColumns;
#pragma unroll 1
    for (int group = 0; group < s.tiles; group += s.group_tiles) {
      const int end = min(group + s.group_tiles, s.tiles);
#pragma unroll 1
      for (int piece = 0; piece < s.pieces; ++piece) {
#pragma unroll 1
        for (int tile = group; tile < end; ++tile) {
          const int row = s.first + s.begin_of(tile);
#pragma unroll 1
          for (int kind = 0; kind < s.kinds; ++kind) {
            make_room();
            if constexpr (kSmall) {
              copy_tiles(s, weight, row, piece, across);
            } else {
              const Barrier full = ring_.full_barrier();
              full.arrive_and_expect(s.tile_rows * kPiece * 2);
              copy_box(ring_.stage(), matrix, row + kind * s.outputs, piece * kPieceBlocks, full,
                       policy_);
            }
            ring_.advance(1);
          }
        }
      }
    }
  }

  // Until the next stage may be copied.
  __device__ __forceinline__ void make_room() {
    if (under_way_ == plan_.flight) {
      landed_.wait_full();
      landed_.advance(1);
      --under_way_;
    }
    ++under_way_;
    ring_.wait_empty();
  }

  // The tiles of 8 rows from `row` on, and those of the 8 rows behind them, which where outputs are
  // gated are the others of the same outputs.
  __device__ __forceinline__ void copy_tiles(const StreamShare& s, const unsigned char* weight,
                                             int row, int piece, int across) {
    constexpr int kBytes = SmallTileOf < kSmall<kType> ? kType : DType::kQ8 > ::kBytes;
    const uint32_t bytes = min(kPieceTiles, across - piece * kPieceTiles) * kBytes;
    const bool both = has_lower(s, row - s.first);
    const int64_t upper = int64_t{row / SmallTile::kRows} * across + piece * kPieceTiles;
    const int64_t lower = upper + int64_t{s.gated ? s.outputs / SmallTile::kRows : 1} * across;
    const Barrier full = ring_.full_barrier();
    full.arrive_and_expect(both ? 2 * bytes : bytes);
    copy_bulk(ring_.stage(), weight + upper * kBytes, bytes, full, policy_);
    if (!both) return;
    copy_bulk(ring_.stage() + kPieceTiles * kBytes, weight + lower * kBytes, bytes, full, policy_);
  }

  // What the layer needs besides weights, asked for a little before its use; by all threads.
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
