#pragma once

#include "kernels/cuda/common.cuh"

namespace gsa::cuda {

// Bytes per second that reading device memory reaches: a buffer much larger than the caches, in
// order, the best of several passes. The yardstick of a decode step.
double measure_read_bandwidth(const Launch& how);

}  // namespace gsa::cuda
