#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace gsa::cpu {

// y[t, r] = (accumulate ? y[t, r] : 0) + sum_c weight[r, c] * x[t, c], for rows [row_begin,
// row_end) of the weight and all `tokens` rows of x. Float32 arithmetic over f32, f16 or bf16
// weights.
//
// Every sum runs over the columns in one fixed order (a vector of partial sums, one per lane, then
// the lanes), whatever the number of tokens or rows in the call: results are the same bit for bit
// alone, in any batch and for any split of the rows.
struct MatmulRows {
  const float* x = nullptr;  // [tokens, x_stride >= cols]
  int64_t x_stride = 0;
  int64_t tokens = 0;
  TensorView weight;  // [rows, cols]
  int64_t row_begin = 0;
  int64_t row_end = 0;
  bool accumulate = false;
  float* y = nullptr;  // [tokens, y_stride]; y[t * y_stride + r]
  int64_t y_stride = 0;
};

void matmul_rows(const MatmulRows& args);

}  // namespace gsa::cpu
