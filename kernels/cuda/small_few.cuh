// Products of q8 and q4 weights with up to four tokens.
#pragma once

#include "kernels/cuda/matvec.cuh"

namespace gsa::cuda {

// small_mat_vec for at most kMatVecTokens tokens.
void small_few(const Launch& how, const MatVec& m);

}  // namespace gsa::cuda
