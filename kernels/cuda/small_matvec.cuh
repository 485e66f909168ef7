// Products of q8 and q4 weights with a few tokens, bound by reading the weights.
#pragma once

#include "kernels/cuda/matvec.cuh"

namespace gsa::cuda {

// Whether small_mat_vec takes it: columns in vectors of four floats; where gated, the rows of a
// tile all gate rows or all up rows; rows apart in bfloat16, of enough columns for all warps of a
// block.
bool fits_small_mat_vec(const MatVec& args);

// mat_vec for q8 and q4, as exact as in float32: by digits (small_digits.cuh) for one or two
// tokens, by halves (small_halves.cuh) for more.
void small_mat_vec(const Launch& how, const MatVec& args);

}  // namespace gsa::cuda
