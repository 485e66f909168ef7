#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "model/gsa_model.h"
#include "model/random_weights.h"
#include "model/state_pool.h"
#include "model/walk.h"

namespace gsa::test {

// Weights large enough that gates, softmax and norms all matter: normal with standard deviation
// 1.5 / sqrt(columns), norms between 0.5 and 1.5. REQUIRES: f32 weights.
inline RandomWeights lively_weights(const GsaConfig& config, uint32_t seed) {
  RandomWeights random = make_random_weights(config, DType::kF32, seed);
  std::mt19937 generator(seed);
  const auto matrix = [&](const TensorView& view) {
    if (!view) return;
    std::normal_distribution<float> normal(0, 1.5f / std::sqrt(float(view.shape[1])));
    for (int64_t i = 0; i < view.elements(); ++i) view.f32()[i] = normal(generator);
  };
  const auto norm = [&](const TensorView& view) {
    if (!view) return;
    std::uniform_real_distribution<float> uniform(0.5f, 1.5f);
    for (int64_t i = 0; i < view.elements(); ++i) view.f32()[i] = uniform(generator);
  };
  for (const LayerWeights& w : random.weights.layers) {
    for (const TensorView& v : {w.qkvf, w.conv, w.feature_map, w.o_proj, w.gate_up, w.down}) {
      matrix(v);
    }
    for (const TensorView& v : {w.attn_norm, w.g_norm, w.mlp_norm}) norm(v);
  }
  matrix(random.weights.embeddings);
  norm(random.weights.norm);
  if (!config.tie_word_embeddings) matrix(random.weights.lm_head);
  return random;
}

inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(generator() % vocabulary);
  return tokens;
}

// A model on the CPU with its states.
struct Runner {
  Runner(const GsaConfig& config, const ModelWeights& weights, int threads = 2,
         int64_t step_tokens = 64, int64_t capacity = 8)
      : backend(make_cpu_backend(threads)),
        states(config, *backend, capacity),
        model(config, weights, *backend,
              {.tokens = step_tokens, .segments = capacity, .logit_rows = step_tokens}) {}

  // Logits of all positions, [T, N].
  std::vector<float> logits(const StateHandle& state, std::span<const int32_t> tokens) {
    std::vector<float> all;
    walk(model, states, state, tokens, [&](int64_t, const TensorView& rows) {
      all.insert(all.end(), rows.f32(), rows.f32() + rows.elements());
    });
    return all;
  }

  std::unique_ptr<Backend> backend;
  StatePool states;
  GsaModel model;
};

// Relative Frobenius norm of the difference.
template <typename A, typename B>
double relative_error(const A& found, const B& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < std::size(expected); ++i) {
    const double e = expected[i];
    difference += (found[i] - e) * (found[i] - e);
    norm += e * e;
  }
  return std::sqrt(difference / norm);
}

}  // namespace gsa::test
