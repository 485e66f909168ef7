// A decode step as one kernel.
#pragma once

#include "kernels/cuda/stream_plan.h"

namespace gsa::cuda {

// Takes the step's tokens in, and leaves their logits. Every block of the grid must be able to run
// at the same time: nothing else may hold multiprocessors until this kernel has ended.
void run_stream(const Launch& how, const StreamStep& step, const StreamPlan& plan);

}  // namespace gsa::cuda
