#include "tools/gsa/scoring.h"

#include "kernels/error.h"

namespace gsa {
namespace {

constexpr int64_t kChunk = 128;

}  // namespace

Scoring::Scoring(const RunFlags& flags)
    : name_(flags.model),
      model_(load_model(flags.model)),
      backend_(make_backend(flags.device, flags.threads)),
      states_(model_->config, *backend_, 1, state_type(flags.state_type)),
      gsa_model_(model_->config, model_->weights, *backend_,
                 {.tokens = kChunk, .segments = 1, .logit_rows = kChunk}) {}

const Tokenizer& Scoring::tokenizer() const {
  if (!model_->tokenizer) throw Error("{}: has no tokenizer; give --tokens", name_);
  return *model_->tokenizer;
}

}  // namespace gsa
