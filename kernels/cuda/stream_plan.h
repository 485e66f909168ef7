// A whole decode step of a few sequences, and how one kernel divides it over its blocks.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>
#include <optional>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/mix_decode.cuh"
#include "kernels/cuda/small_weights.h"
#include "kernels/cuda/stream_matrices.h"
#include "kernels/shape.h"

namespace gsa::cuda {

// The most sequences of a step.
constexpr int kStreamTokens = 4;

constexpr int kStreamWarps = 8;  // of a block that compute; one more copies weights
constexpr int kStreamThreads = kStreamWarps * 32;

// A stage holds a tile of rows by a piece of columns and is the work of one warp. Small weights lie
// in it as two rows of their tiles (small_weights.h).
constexpr int kTileRows = 16;    // at most
constexpr int kPieceBlocks = 8;  // of kBoxColumns columns
constexpr int kPiece = kPieceBlocks * kBoxColumns;
constexpr int kPieceTiles = kPiece / SmallTile::kColumns;
constexpr int kStageMost = 32;

// Threads that take the copies of stages in turn: of small weights there are many. Only where the
// stages of a ring and those under way are multiples of them does a thread wait for none but its
// own earlier stages; those of another may be two phases of a barrier further by the time it looks.
// REQUIRES: divides kStreamWarps
constexpr int copy_lanes(DType type) { return is_quantized(type) ? 4 : 1; }

// Bytes of a stage; the copies of bfloat16 want a multiple of 1024.
constexpr int stage_bytes(DType type) {
  const int bytes = type == DType::kQ8   ? 2 * kPieceTiles * SmallTileOf<DType::kQ8>::kBytes
                    : type == DType::kQ4 ? 2 * kPieceTiles * SmallTileOf<DType::kQ4>::kBytes
                                         : kTileRows * kPiece * 2;
  return (bytes + 1023) / 1024 * 1024;
}

// For the device, which has no functions of the host.
template <DType kType>
inline constexpr bool kSmall = is_quantized(kType);
template <DType kType>
inline constexpr DType kTileType = is_quantized(kType) ? kType : DType::kQ8;  // any where unused
template <DType kType>
inline constexpr int kStageBytes = stage_bytes(kType);
template <DType kType>
inline constexpr int kCopyLanes = copy_lanes(kType);

constexpr int kPanelBytes = 32 * 1024;    // activations in shared memory at a time, at most
constexpr int kPanelPad = 32;             // columns; neighbouring rows in different banks
constexpr int kSumsPad = 4;               // of groups of 32 columns, the same
constexpr int kPartialBytes = 16 * 1024;  // sums of pieces, at most

// Copies of the activations that all blocks read, each of them read by every kReplicas-th: a line
// that every multiprocessor asks for again and again keeps what is written to it waiting.
constexpr int kReplicas = 4;

constexpr int kMostQueries = 4;  // query heads of a memory
constexpr int kMostSlots = 256;
constexpr int kMostSplits = 32;  // of a memory over blocks

// The products of a layer in their order, and that of the logits. Rows of f that have a type of
// their own, bfloat16, are a product apart, of the same activations as the one before.
enum StreamProduct { kQkvf, kApart, kOut, kGateUp, kDown, kHead };
constexpr int kLayerProducts = 5;

// Letters as in kernels/backend.h; all pointers are to device memory.
struct StreamLayer {
  // [H*K + G*(K+V+M), D] or without the last G*M rows, which then are the next, or null, [G*M, D];
  // [D, H*V], [2F, D], [D, F]
  const void* weight[kLayerProducts];
  const float* norm[kLayerProducts];  // of the product's columns, or null for ones
  float* hk;                          // [G, K, M] at state 0
  float* hv;                          // [G, M, V] at state 0
};

struct StreamStep {
  const StreamLayer* layers;        // [layer_count + 1]: the last has the logits' product alone
  const CUtensorMap* matrices;      // [layer_count + 1][kLayerProducts][2], see stream_matrices.h
  const __nv_bfloat16* embeddings;  // [N, D]
  const int32_t* tokens;            // [T]
  const DecodeRow* rows;            // [T]
  float* logits;                    // [T, N]

  // Where the blocks exchange activations, see stream_exchange.cuh. Of x, mixed, y and hidden there
  // are kReplicas, one after the other.
  float* x;        // [T, D] before the recurrence's products
  float* qkvf;     // [T, width]
  float* scores;   // [T, G, splits, H/G, M] shares of q . Hk
  float* mixed;    // [T, H*V]
  float* y;        // [T, D] before the MLP
  float* hidden;   // [T, F]
  uint32_t epoch;  // of the first layer; a step takes layer_count + 1

  int layer_count, T, D, F, N;
  int H, G, K, V, M;
  float inverse_normalizer, eps, output_eps;
  FeatureMap map;
  DType type;  // of weights but the rows apart
};

// A product and a block's share of its outputs.
struct StreamShare {
  const float* input;
  float* output;
  int outputs, cols;
  int stride;  // floats from a token's outputs to the next one's
  bool gated;  // two rows of weights for an output
  float eps;   // of the norm of the input; negative: no norm
  float inverse_cols;
  int pieces;     // of the columns
  int panel;      // pieces whose activations are in shared memory at a time
  int grain;      // outputs of a block are a multiple of this
  int tile_rows;  // outputs of a tile
  float inverse_tile_rows;
  int most_tiles;    // of a block
  int rest_rows;     // outputs of the tile with that number, counted from 1
  int kinds;         // stages of a tile: 2 where the rows of an output are in different ones
  int partial;       // where its sums begin, in floats
  int first, count;  // outputs of the block
  int tiles;
  int group_tiles;  // whose sums are in shared memory at a time

  // Fills in the block's part.
  __host__ __device__ void take(int block, int blocks, int tokens) {
    const int64_t grains = (outputs + grain - 1) / grain;
    first = static_cast<int>(grains * block / blocks) * grain;
    const int end = static_cast<int>(grains * (block + 1) / blocks) * grain;
    count = (end < outputs ? end : outputs) - first;
    tiles = (count + tile_rows - 1) / tile_rows;
    const int most = kPartialBytes / (4 * kTileRows * tokens * kinds * pieces);
    group_tiles = tiles < most ? tiles : most > 0 ? most : 1;
  }
  __host__ __device__ int sums(int tokens) const {
    return group_tiles * kinds * pieces * kTileRows * tokens;
  }
  __host__ __device__ int rows_of(int tile) const {
    return tile + 1 == most_tiles ? rest_rows : tile_rows;
  }
};

// A unit of the recurrence: a part of the rows of one hk and of the columns of its hv. Offsets are
// in floats.
struct StreamUnit {
  int64_t hk, hv;  // of the parts in a layer's memories
  int scores;      // of the memory's units
  int split;       // which of them this is
  int out;         // of the first query head's columns
};

struct StreamPlan {
  StreamShare shares[kHead + 1];
  int units, splits, k_rows, v_columns;
  int block_units;  // of a block at most
  int inputs;       // of a unit: the slots of f, then its parts of k, of all queries, and of v
  int ring;         // stages
  int flight;       // stages under way at most
  // Offsets in shared memory, and its size, in bytes.
  int digits, panel, panel_sums, partial, mix, squares, residual, table, layers, unit_table,
      input_table, barriers, bytes;
};

// Tokens of the kernel that takes a step of so many.
constexpr int stream_width(int tokens) { return tokens <= 2 ? tokens : 4; }

// How the step, whose pointers are set, is divided over the device (which must have bulk copies:
// compute capability 9.0), or nothing where the kernel does not have the shape.
std::optional<StreamPlan> plan_stream(const Launch& how, const StreamStep& step);

// Floats of the exchange buffers, which must be zero before the first step.
struct StreamBuffers {
  int64_t x, qkvf, scores, mixed, y, hidden;
};
StreamBuffers stream_buffers(const StreamStep& step);

}  // namespace gsa::cuda
