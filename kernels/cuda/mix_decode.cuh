// The GSA recurrence for sequences that take in one token each.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda/common.cuh"

namespace gsa::cuda {

// A sequence's token: the row of the packed step, and the state, -1 for a row that only fills up a
// recorded step.
struct DecodeRow {
  int32_t row;
  int32_t state;
};

// Backend::mix for `count` rows in device memory. For kT2R, q and k have been through the learned
// map already.
void mix_decode(const Launch& how, const Mix& args, const DecodeRow* rows, int count);

}  // namespace gsa::cuda
