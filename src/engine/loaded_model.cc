#include "engine/loaded_model.h"

#include <utility>

#include "model/random_weights.h"

namespace gsa {

std::shared_ptr<const LoadedModel> load_model(const std::filesystem::path& path) {
  auto checkpoint = std::make_shared<const Checkpoint>(Checkpoint::open(path));
  auto model = std::make_shared<LoadedModel>();
  model->config = checkpoint->config();
  model->weights = checkpoint->weights();
  model->identity = {path.filename().string(), checkpoint->fingerprint()};
  model->type = checkpoint->type();
  model->chat_template = checkpoint->chat_template();
  if (!checkpoint->tokenizer().empty()) model->tokenizer.emplace(*checkpoint);
  model->storage = std::move(checkpoint);
  return model;
}

std::shared_ptr<const LoadedModel> random_model(const GsaConfig& config, DType type,
                                                const std::string& name) {
  RandomWeights random = make_random_weights(config, type, /*seed=*/1);
  auto model = std::make_shared<LoadedModel>();
  model->config = config;
  model->weights = std::move(random.weights);
  model->identity = {name, "random"};
  model->type = dtype_name(type);
  model->storage = std::move(random.storage);
  return model;
}

}  // namespace gsa
