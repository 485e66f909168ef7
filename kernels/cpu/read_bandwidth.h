#pragma once

#include "kernels/cpu/thread_pool.h"

namespace gsa::cpu {

// Bytes per second that all threads together reach reading a buffer much larger than the caches,
// in order, the best of several passes. The yardstick of a decode step.
double measure_read_bandwidth(ThreadPool& pool);

}  // namespace gsa::cpu
