#include "kernels/cuda/small_matvec.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/dense_stream.cuh"
#include "kernels/cuda/small_few.cuh"
#include "kernels/cuda/small_weights.h"

namespace gsa::cuda {

bool fits_small_mat_vec(const MatVec& m) {
  const int64_t cols = m.weight.shape[1];
  if (!is_quantized(m.weight.dtype) || cols % 4 != 0) return false;
  if (m.gated && m.weight.shape[0] % (2 * kTileRows) != 0) return false;
  return !m.apart || (dense::fits(m.apart) && cols >= kMostWarps * dense::kPiece);
}

// More tokens than small_few takes come here only where small_batch does not take them: devices
// without clusters read the weights once for every four.
void small_mat_vec(const Launch& how, const MatVec& m) {
  assert(m.tokens >= 1 && m.tokens <= mat_vec_tokens(m.weight.dtype) && fits_small_mat_vec(m));
  for (int first = 0; first < m.tokens; first += kMatVecTokens) {
    MatVec part = m;
    part.tokens = std::min(m.tokens - first, kMatVecTokens);
    part.x += int64_t{first} * m.weight.shape[1];
    part.y += int64_t{first} * stride_of(m);
    small_few(how, part);
  }
}

}  // namespace gsa::cuda
