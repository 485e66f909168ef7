// Products of a weight with a few tokens, bound by reading the weight.
#pragma once

#include <cstdint>

#include "kernels/cuda/common.cuh"
#include "kernels/tensor.h"

namespace gsa::cuda {

// More tokens go through small_batch or cuBLASLt, for which small weights would have to be widened.
constexpr int kMatVecTokens = 4;
constexpr int kSmallMatVecTokens = 16;

constexpr int mat_vec_tokens(DType weight) {
  return is_quantized(weight) ? kSmallMatVecTokens : kMatVecTokens;
}

// y = W norm(x), y += W norm(x), or y = silu(Wgate norm(x)) * (Wup norm(x)); norm as in
// NormProject.
struct MatVec {
  const float* x = nullptr;  // [tokens, cols]
  int tokens = 0;            // 1 to mat_vec_tokens(weight.dtype), see mat_vec_takes
  bool normalize = false;
  const float* norm_weight = nullptr;  // [cols], or null for ones
  float eps = 0;
  TensorView weight;      // [rows, cols], or [2*rows, cols] where gated: gate rows first
  TensorView apart = {};  // more rows, of another type, or null; in y they stand behind the others
  bool gated = false;
  bool accumulate = false;
  float* y = nullptr;  // [tokens, rows]
  int y_stride = 0;    // floats from a token to the next; 0 where that is all rows
};

inline int stride_of(const MatVec& m) {
  const int64_t rows = m.weight.shape[0] / (m.gated ? 2 : 1) + (m.apart ? m.apart.shape[0] : 0);
  return m.y_stride == 0 ? static_cast<int>(rows) : m.y_stride;
}

// The rows apart as a product of their own.
inline MatVec product_apart(const MatVec& m) {
  MatVec apart = m;
  apart.weight = m.apart;
  apart.apart = {};
  apart.y = m.y + m.weight.shape[0];
  apart.y_stride = stride_of(m);
  return apart;
}

// Whether mat_vec has a way for so many tokens.
bool mat_vec_takes(const MatVec& args);

// Arithmetic is float32 for every type of weight: bfloat16 weights meet activations that are split
// into two bfloat16 halves, whose products the tensor cores sum in float32, and so do small ones.
void mat_vec(const Launch& how, const MatVec& args);

}  // namespace gsa::cuda
