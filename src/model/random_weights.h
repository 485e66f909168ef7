#pragma once

#include <cstdint>
#include <memory>

#include "checkpoint/checkpoint.h"

namespace gsa {

// Weights of the shape of `config` in memory of their own, every large matrix of the given type
// (f32, f16, bf16, q8 or q4, beside the last two bf16 as in a checkpoint): uniform with standard
// deviation 0.02, norms of ones. The same seed gives the
// same weights.
struct RandomWeights {
  ModelWeights weights;
  std::shared_ptr<const void> storage;
};

RandomWeights make_random_weights(const GsaConfig& config, DType type, uint64_t seed);

}  // namespace gsa
