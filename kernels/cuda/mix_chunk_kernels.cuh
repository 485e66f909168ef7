// What the kernels of the chunked recurrence share: their arguments and scratch memory, and how
// each is queued.
#pragma once

#include "kernels/cuda/mix_chunk.cuh"

namespace gsa::cuda {

constexpr int kBlocks = kChunk / kBlock;
// K, V and M are padded with zeros to a multiple of this in scratch memory.
constexpr int kPad = 64;

inline int padded(int64_t n) { return static_cast<int>((n + kPad - 1) / kPad * kPad); }
// M is padded to what kernels are compiled for.
inline int padded_slots(int64_t M) { return M <= 64 ? 64 : M <= 128 ? 128 : 256; }

struct ChunkArgs {
  ChunkStep step;
  int H, G, K, V, M;
  int padded_K, padded_V, padded_M;
  bool relu;     // phi is relu, else silu
  bool vectors;  // q, k and v of every token and head are aligned to 16 bytes
  float inverse_normalizer;
  size_t shared_limit;  // bytes that a block can have on this device

  float* qkvf;
  int64_t width;
  int k_column, v_column, f_column;
  float* out;
  DType state_type;
  void* hk;
  void* hv;

  // Scratch by slot and memory, rows of padded_M floats. Tokens past the end of a segment and
  // slots past M keep all and write nothing. What is called an operand is tf32() of it.
  float* keep;         // [slots, G, kChunk, padded_M] g
  float* write;        // [slots, G, kChunk, padded_M] s
  float* aged_write;   // [slots, G, padded_M, kChunk] s at the end of its block, an operand
  float* block_decay;  // [slots, G, kBlocks, padded_M] product of g over a block
  float* memories;     // [slots, G, padded_K + padded_V, padded_M] hk, then hv transposed, as they
                       // are before the chunk, operands
};

// Fills keep, write, aged_write and block_decay.
void queue_chunk_gates(const Launch& how, const ChunkArgs& args);
// Walks every segment: replaces its k and v by phi(k) and silu(v), as operands, fills
// `memories` and updates the states.
void queue_chunk_memories(const Launch& how, const ChunkArgs& args);
// From all of these and q to `out`.
void queue_chunk_outputs(const Launch& how, const ChunkArgs& args);

}  // namespace gsa::cuda
