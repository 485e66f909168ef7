// Products of bfloat16, q8 and q4 weights with 5 to 16 tokens, bound by reading the weights.
#pragma once

#include "kernels/cuda/matvec.cuh"
#include "kernels/tensor.h"

namespace gsa::cuda {

constexpr int kSmallBatchTokens = 16;

// y = W x, y += W x, or y = silu(Wgate x) * (Wup x).
struct SmallBatch {
  const void* x = nullptr;  // bfloat16 [tokens, cols], the operand of make_operand
  int64_t tokens = 0;       // more than kMatVecTokens, at most kSmallBatchTokens
  TensorView weight;        // [rows, cols], or [2*rows, cols] where gated: gate rows first
  TensorView apart = {};    // of a q8 or q4 weight more rows, in bfloat16, behind the others in y
  bool gated = false;
  bool accumulate = false;
  void* y = nullptr;  // [tokens, rows] float32, where gated bfloat16
};

// Whether small_batch takes it, on a device with thread block clusters: so many tokens; of columns
// whole vectors of eight, of bfloat16 weights of 64, whose activations fit; where gated, rows in
// whole tiles; a weight below 4 GiB.
bool small_batch_takes(const Launch& how, const SmallBatch& args);

// Weights of all three types are exact in bfloat16, those of q8 and q4 as integers whose groups are
// summed and scaled in float32, so the activations are all that is rounded.
void small_batch(const Launch& how, const SmallBatch& args);

}  // namespace gsa::cuda
