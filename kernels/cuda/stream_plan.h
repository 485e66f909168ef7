// A whole decode step of a few sequences, and how one kernel divides it over its blocks.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>
#include <optional>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/mix_decode.cuh"
#include "kernels/shape.h"

namespace gsa::cuda {

// The most sequences of a step.
constexpr int kStreamTokens = 4;

constexpr int kStreamWarps = 8;  // of a block that compute; one more copies weights
constexpr int kStreamThreads = kStreamWarps * 32;

// A stage holds a tile of rows by a piece of columns and is the work of one warp.
constexpr int kTileRows = 16;  // at most
constexpr int kPiece = 512;
constexpr int kStageBytes = kTileRows * kPiece * 2;
constexpr int kStageMost = 13;

constexpr int kPanelBytes = 32 * 1024;    // activations in shared memory at a time, at most
constexpr int kPanelPad = 32;             // columns; neighbouring rows in different banks
constexpr int kPartialBytes = 16 * 1024;  // sums of pieces, at most

constexpr int kMostQueries = 4;  // query heads of a memory
constexpr int kMostSlots = 256;
constexpr int kMostSplits = 32;  // of a memory over blocks

// The products of a layer in their order, and that of the logits.
enum StreamProduct { kQkvf, kOut, kGateUp, kDown, kHead };
constexpr int kLayerProducts = 4;

// Letters as in kernels/backend.h; all pointers are to device memory.
struct StreamLayer {
  // [H*K + G*(K+V+M), D], [D, H*V], [2F, D], [D, F]
  const __nv_bfloat16* weight[kLayerProducts];
  const float* norm[kLayerProducts];  // of the product's columns, or null for ones
  float* hk;                          // [G, K, M] at state 0
  float* hv;                          // [G, M, V] at state 0
};

struct StreamStep {
  const StreamLayer* layers;        // [layer_count + 1]: the last has the logits' product alone
  const CUtensorMap* matrices;      // [layer_count * kLayerProducts + 1], see stream_matrices.h
  const __nv_bfloat16* embeddings;  // [N, D]
  const int32_t* tokens;            // [T]
  const DecodeRow* rows;            // [T]
  float* logits;                    // [T, N]

  // Where the blocks exchange activations, see stream_exchange.cuh.
  float* x;        // [T, D] before the recurrence's products
  float* qkvf;     // [T, width]
  float* scores;   // [T, G, splits, H/G, M] shares of q . Hk
  float* mixed;    // [T, H*V]
  float* y;        // [T, D] before the MLP
  float* hidden;   // [T, F]
  uint32_t epoch;  // of the first layer; a step takes layer_count + 1

  int layer_count, T, D, F, N;
  int H, G, K, V, M;
  int64_t state_stride;  // floats
  float inverse_normalizer, eps, output_eps;
  FeatureMap map;
};

// A product and a block's share of its outputs.
struct StreamShare {
  const float* input;
  float* output;
  int outputs, cols;
  int kinds;  // rows of weights for an output: 2 where gated
  float eps;  // of the norm of the input; negative: no norm
  float inverse_cols;
  int pieces;        // of the columns
  int panel;         // pieces whose activations are in shared memory at a time
  int tile_rows;     // of a tile; the last one begins so that it ends with the block's outputs
  int first, count;  // outputs of the block
  int tiles;
  int group_tiles;  // whose sums are in shared memory at a time

  // Fills in the block's part.
  __host__ __device__ void take(int block, int blocks, int tokens) {
    first = static_cast<int>(int64_t{outputs} * block / blocks);
    count = static_cast<int>(int64_t{outputs} * (block + 1) / blocks) - first;
    tiles = (count + tile_rows - 1) / tile_rows;
    const int most = kPartialBytes / (4 * kTileRows * tokens * kinds * pieces);
    group_tiles = tiles < most ? tiles : most > 0 ? most : 1;
  }
  __host__ __device__ int begin_of(int tile) const {
    const int begin = tile * tile_rows, last = count - tile_rows;
    return begin <= last ? begin : last > 0 ? last : 0;
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
  int panel, partial, mix, squares, residual, table, layers, unit_table, input_table, barriers,
      bytes;
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
