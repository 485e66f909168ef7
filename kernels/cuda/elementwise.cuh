// The operations that are not products: each reads its operands once.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/mix_chunk.cuh"

namespace gsa::cuda {

// x[t] = table[tokens[t]], [N, D] -> [count, D] f32.
void embed(const Launch& how, const TensorView& table, const int32_t* tokens, int64_t count,
           float* x);

// tokens[t] = drawn[rows[t]].
void take_tokens(const Launch& how, const int32_t* drawn, const int32_t* rows, int64_t count,
                 int32_t* tokens);

// out[r] = x[rows[r]], rows of D floats.
void take_rows(const Launch& how, const float* x, const int32_t* rows, int64_t count, int64_t D,
               float* out);

// Backend's operations on slices.
void fill(const Launch& how, const Slices& to, float value);
void gather(const Launch& how, const Slices& from, float* floats);
void scatter(const Launch& how, const float* floats, const Slices& to);

// out = norm(x), row by row in `type`: the operand of a product.
struct Operand {
  const float* x;  // [rows, cols]
  int64_t rows, cols;
  const float* norm_weight;  // [cols], or null for ones
  float eps;
  DType type;
  void* out;  // [rows, cols]
};
void make_operand(const Launch& how, const Operand& args);

// out = silu(gate) * up of gate_up [rows, 2F], gate columns first; all of one type.
void silu_multiply(const Launch& how, const void* gate_up, DType type, int64_t rows, int64_t F,
                   void* out);

// Every head of q and k through the learned map, in place: qkvf [tokens, width], `heads` heads of
// K columns at the beginning of each row.
void map_heads(const Launch& how, const TensorView& map, int64_t tokens, int64_t width,
               int64_t heads, float* qkvf);

// Backend::convolve. `edges` is scratch of [tiles, C - 1, channels] floats: the inputs before each
// tile, kept before they are overwritten.
void convolve(const Launch& how, const Convolve& args, const Segment* segments,
              const ChunkTile* tiles, int64_t tile_count, float* edges);

}  // namespace gsa::cuda
