#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "model/gsa_model.h"
#include "model/random_weights.h"
#include "model/state_pool.h"
#include "model/walk.h"
#include "tests/support/device_data.h"

namespace gsa::test {

// A small model of two layers: H query heads over G memories of K, V and M (kernels/shape.h).
inline GsaConfig shape(int64_t H, int64_t G, int64_t K, int64_t V, int64_t M) {
  GsaConfig c;
  c.hidden_size = H * K;
  c.num_layers = 2;
  c.vocab_size = 97;
  c.intermediate_size = 75;
  c.num_heads = H;
  c.num_kv_heads = G;
  c.key_dim = K;
  c.value_dim = V;
  c.num_slots = M;
  c.bos_token_id = 1;
  c.eos_token_ids = {2};
  return c;
}

// Weights large enough that gates, softmax and norms all matter: normal with standard deviation
// 1.5 / sqrt(columns), norms between 0.5 and 1.5. The large matrices are stored as `type`.
inline RandomWeights lively_weights(const GsaConfig& config, uint32_t seed,
                                    DType type = DType::kF32) {
  RandomWeights weights = make_random_weights(config, type, seed);
  Random random(seed);
  const auto matrix = [&](const TensorView& view) {
    if (!view) return;
    const double deviation = 1.5 / std::sqrt(static_cast<double>(view.shape[1]));
    narrow(random.normal(view.elements(), deviation), view);
  };
  const auto norm = [&](const TensorView& view) {
    if (view) narrow(random.uniform(view.elements(), 0.5, 1.5), view);
  };
  for (const LayerWeights& w : weights.weights.layers) {
    for (const TensorView& v : {w.qkvf, w.f, w.conv, w.feature_map, w.o_proj, w.gate_up, w.down}) {
      matrix(v);
    }
    for (const TensorView& v : {w.attn_norm, w.g_norm, w.mlp_norm}) norm(v);
  }
  matrix(weights.weights.embeddings);
  norm(weights.weights.norm);
  if (weights.weights.lm_head.data != weights.weights.embeddings.data) {
    matrix(weights.weights.lm_head);
  }
  return weights;
}

inline std::vector<int32_t> random_tokens(int64_t count, int64_t vocabulary, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(generator() % vocabulary);
  return tokens;
}

// A copy in host memory.
inline std::vector<float> download(Backend& backend, const TensorView& view) {
  std::vector<float> host(view.elements());
  backend.download(view.data, view.bytes(), host.data());
  return host;
}

inline std::vector<StateHandle> acquire(StatePool& pool, int64_t count) {
  std::vector<StateHandle> states;
  for (int64_t i = 0; i < count; ++i) states.push_back(*pool.acquire());
  return states;
}

// A model on a device with its states.
struct Runner {
  Runner(const GsaConfig& config, const ModelWeights& weights, int threads = 2,
         int64_t step_tokens = 64, int64_t capacity = 8)
      : Runner(make_cpu_backend(threads), config, weights, step_tokens, capacity) {}

  Runner(std::unique_ptr<Backend> device, const GsaConfig& config, const ModelWeights& weights,
         int64_t step_tokens = 64, int64_t capacity = 8, DType state_type = DType::kF32)
      : backend(std::move(device)),
        states(config, *backend, capacity, state_type),
        model(config, weights, *backend,
              {.tokens = step_tokens, .segments = capacity, .logit_rows = step_tokens}) {}

  // Logits of all positions, [T, N].
  std::vector<float> logits(const StateHandle& state, std::span<const int32_t> tokens) {
    std::vector<float> all;
    walk(model, states, state, tokens, [&](int64_t, const TensorView& rows) {
      const std::vector<float> host = download(*backend, rows);
      all.insert(all.end(), host.begin(), host.end());
    });
    return all;
  }

  // Logits that one step gives, [R, N].
  std::vector<float> forward(const Batch& batch) {
    return download(*backend, model.forward(batch, states));
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

// The memories of an exported state beside those that expected("hk" or "hv", layer) gives.
template <typename Expected>
void expect_memories(std::span<const float> state, int64_t layers, double tolerance,
                     const Expected& expected) {
  const float* at = state.data();
  for (const std::string memory : {"hk", "hv"}) {
    for (int64_t i = 0; i < layers; ++i) {
      const auto& values = expected(memory, i);
      EXPECT_LT(relative_error(std::span(at, values.size()), values), tolerance)
          << memory << " of layer " << i;
      at += values.size();
    }
  }
}

}  // namespace gsa::test
