// Products of q8 and q4 weights with a few tokens, bound by reading the weights.
#pragma once

#include "kernels/cuda/matvec.cuh"

namespace gsa::cuda {

// Whether small_mat_vec takes it: columns in vectors of four floats; where gated, the rows of a
// tile all gate rows or all up rows; rows apart in bfloat16, of enough columns for all warps of a
// block.
bool fits_small_mat_vec(const MatVec& args);

// mat_vec for q8 and q4. The integers are exact in bfloat16, groups are summed and scaled in
// float32.
void small_mat_vec(const Launch& how, const MatVec& args);

}  // namespace gsa::cuda
