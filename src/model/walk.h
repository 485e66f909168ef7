#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "model/gsa_model.h"
#include "model/state_pool.h"

namespace gsa {

// Feeds tokens to a state in chunks of at most the model's limits and hands the logits after every
// token to `visit`, chunk by chunk: `first` is the position of the chunk's first token, `logits`
// [count, N] f32 in device memory, valid during the call.
void walk(GsaModel& model, StatePool& states, const StateHandle& state,
          std::span<const int32_t> tokens,
          const std::function<void(int64_t first, const TensorView& logits)>& visit);

}  // namespace gsa
