// What the warps of a persistent kernel's block share, and the one that copies weights.
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
    const int64_t memory = int64_t{sequence.state} * a.G + g;
    unit = {.hk = (memory * a.K + split * plan.k_rows) * a.M,
            .hv = memory * a.M * a.V + split * plan.v_columns,
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

// The copying warp waits for the tables of units, which the others say are filled in.
__device__ __forceinline__ void tell_units_found() {
  asm volatile("bar.arrive 2, %0;" ::"n"(kStreamThreads + 32) : "memory");
}
__device__ __forceinline__ void wait_for_units() {
  asm volatile("bar.sync 2, %0;" ::"n"(kStreamThreads + 32) : "memory");
}

// The warp that copies: all weights of the block's share of a step, in the order of their use.
template <DType kType>
class StreamCopier {
 public:
  __device__ StreamCopier(const StreamStep& a, const StreamPlan& plan, const Tables& tables,
                          const Ring& ring)
      : a_(a), plan_(plan), tables_(tables), ring_(ring), landed_(ring), policy_(drop_first()) {
    ring_.advance(place_ % kLanes);
    landed_.advance(place_ % kLanes);
  }

  __device__ void run() {
    const CUtensorMap* matrix = a_.matrices;
    tables_.for_products(a_.layer_count, [&](int which, const StreamShare& share, int l) {
      const StreamLayer& layer = tables_.layers[l];
      if (which == kApart) {
        if (l == 0) wait_for_units();
        prefetch_layer(l);
      }
      if (lane_ < kLanes) {
        if (which != kHead && lane_ == 0) prefetch_matrix(matrix + 2), prefetch_matrix(matrix + 3);
        const auto* weight =
            static_cast<const unsigned char*>(layer.weight[which % kLayerProducts]);
        if (kSmall<kType> && which != kApart) {
          stream<kSmall<kType>>(share, matrix, weight);
        } else {
          stream<false>(share, matrix, weight);
        }
      }
      matrix += 2;
      __syncwarp();
    });
  }

 private:
  static constexpr int kLanes = kCopyLanes<kType>;

  // What a stage needs is in registers: memory is no busier than this is quick.
  template <bool kSmallStage>
  __device__ __forceinline__ void stream(const StreamShare& share, const CUtensorMap* matrix,
                                         const unsigned char* weight) {
    const StreamShare s = share;
    const int across = (s.cols + SmallTile::kColumns - 1) / SmallTile::kColumns;
#pragma unroll 1
    for (int group = 0; group < s.tiles; group += s.group_tiles) {
      const int tiles = min(s.group_tiles, s.tiles - group) * s.kinds, count = tiles * s.pieces;
      int number = place_, piece = 0;
#pragma unroll 1
      for (; place_ < count; place_ += kLanes, number += kLanes) {
        while (number >= tiles) number -= tiles, ++piece;
        const int tile = group + (s.kinds == 2 ? number / 2 : number);
        make_room();
        if constexpr (kSmallStage) {
          copy_tiles(s, weight, tile * s.tile_rows, piece, across);
        } else {
          const int rows = s.rows_of(tile);
          const Barrier full = ring_.full_barrier();
          full.arrive_and_expect(rows * kPiece * 2);
          copy_box(ring_.stage(), matrix + (rows == s.tile_rows ? 0 : 1),
                   s.first + tile * s.tile_rows + (s.kinds == 2 ? number % 2 * s.outputs : 0),
                   piece * kPieceBlocks, full, policy_);
        }
        ring_.advance(kLanes);
      }
      place_ -= count;
    }
  }

  // Until this thread's next stage may be copied.
  // REQUIRES: flight and the size of the ring are multiples of kLanes
  __device__ __forceinline__ void make_room() {
    if (copied_ >= plan_.flight) {
      landed_.wait_full();
      landed_.advance(kLanes);
    }
    copied_ += kLanes;
    ring_.wait_empty();
  }

  // The tiles of 8 rows from the block's output `begin` on, and those of the 8 rows behind them,
  // which where outputs are gated are the others of the same outputs.
  __device__ __forceinline__ void copy_tiles(const StreamShare& s, const unsigned char* weight,
                                             int begin, int piece, int across) {
    constexpr int kBytes = SmallTileOf<kTileType<kType>>::kBytes;
    const uint32_t bytes = min(kPieceTiles, across - piece * kPieceTiles) * kBytes;
    const bool both = has_lower(s, begin);
    const int64_t upper =
        int64_t{(s.first + begin) / SmallTile::kRows} * across + piece * kPieceTiles;
    const int64_t lower = upper + int64_t{s.gated ? s.outputs / SmallTile::kRows : 1} * across;
    const Barrier full = ring_.full_barrier();
    full.arrive_and_expect(both ? 2 * bytes : bytes);
    copy_bulk(ring_.stage(), weight + upper * kBytes, bytes, full, policy_);
    if (!both) return;
    copy_bulk(ring_.stage() + kPieceTiles * kBytes, weight + lower * kBytes, bytes, full, policy_);
  }

  // What is needed besides weights from a layer's recurrence to the next one's, asked for a little
  // before its use; by all threads.
  __device__ __forceinline__ void prefetch_layer(int l) {
    const StreamLayer& layer = tables_.layers[l];
#pragma unroll 1
    for (int which = kQkvf; which < kLayerProducts; ++which) {
      const float* norm = tables_.layers[which == kQkvf ? l + 1 : l].norm[which];
      const int at = (blockIdx.x + gridDim.x * lane_) * 32;
      if (norm != nullptr && at < tables_.shares[which].cols) prefetch(norm + at);
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
  const int lane_ = threadIdx.x % 32;
  int place_ = lane_;   // of this thread's next stage among those to come
  int copied_ = lane_;  // stages before it in the step
  Ring ring_, landed_;  // of this thread's next stage, and of the one that must have landed by then
  uint64_t policy_;
};

}  // namespace gsa::cuda
