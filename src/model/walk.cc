#include "model/walk.h"

#include <algorithm>

namespace gsa {

void walk(GsaModel& model, StatePool& states, const StateHandle& state,
          std::span<const int32_t> tokens,
          const std::function<void(int64_t first, const TensorView& logits)>& visit) {
  const int64_t chunk = std::min(model.limits().tokens, model.limits().logit_rows);
  Batch batch;
  for (size_t first = 0; first < tokens.size(); first += chunk) {
    batch.clear();
    batch.add(state, tokens.subspan(first, std::min<size_t>(chunk, tokens.size() - first)),
              Logits::kAll);
    visit(static_cast<int64_t>(first), model.forward(batch, states));
  }
}

}  // namespace gsa
