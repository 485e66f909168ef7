#pragma once

#include <memory>
#include <string>

#include "engine/loaded_model.h"
#include "model/gsa_model.h"
#include "model/state_pool.h"
#include "tools/gsa/options.h"

namespace gsa {

// A model with one state, for commands that look at logits.
class Scoring {
 public:
  explicit Scoring(const RunFlags& flags);

  const LoadedModel& model() const { return *model_; }
  // Throws where the model has none.
  const Tokenizer& tokenizer() const;
  GsaModel& gsa_model() { return gsa_model_; }
  StatePool& states() { return states_; }
  Backend& backend() { return *backend_; }

 private:
  std::string name_;
  std::shared_ptr<const LoadedModel> model_;
  std::unique_ptr<Backend> backend_;
  StatePool states_;
  GsaModel gsa_model_;
};

}  // namespace gsa
