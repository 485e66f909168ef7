#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/engine.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_folder.h"

namespace gsa::test {

// Bit for bit.
inline void expect_same(const SampleResult& a, const SampleResult& b) {
  ASSERT_EQ(a.token, b.token);
  ASSERT_EQ(a.logprob, b.logprob);
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) {
    ASSERT_EQ(a.top[i].token, b.top[i].token);
    ASSERT_EQ(a.top[i].logprob, b.top[i].logprob);
  }
}

// A model of 2 layers and random weights that writes text with the tokenizer of tests/data/text.
inline GsaConfig tiny_config() {
  GsaConfig c;
  c.hidden_size = 32;
  c.num_layers = 2;
  c.vocab_size = 1024;
  c.intermediate_size = 48;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.key_dim = 8;
  c.value_dim = 8;
  c.num_slots = 12;
  c.conv_size = 4;
  c.bos_token_id = 1;
  c.eos_token_ids = {2};
  return c;
}

// A model that can be changed before an engine takes it.
inline std::shared_ptr<LoadedModel> tiny_model(const GsaConfig& config = tiny_config()) {
  RandomWeights random = lively_weights(config, 3);
  auto model = std::make_shared<LoadedModel>();
  model->config = config;
  model->weights = std::move(random.weights);
  model->identity = {"tiny", "tiny"};
  model->type = "f32";
  const std::string path = std::string(GSA_SOURCE_DIR) + "/tests/data/text/tokenizer.model";
  model->tokenizer.emplace(read_bytes(path), TokenizerRules{}, config.bos_token_id, path);
  model->storage = std::move(random.storage);
  return model;
}

// The same for all tests of a program.
inline std::shared_ptr<const LoadedModel> model() {
  static const std::shared_ptr<const LoadedModel> model = tiny_model();
  return model;
}

// Random tokens for it.
inline std::vector<int32_t> prompt(int64_t count, uint32_t seed = 1) {
  return random_tokens(count, model()->config.vocab_size, seed);
}

inline Request make_request(std::vector<int32_t> prompt, int64_t max_tokens, uint64_t seed = 0) {
  Request request{.prompt = std::move(prompt), .max_tokens = max_tokens, .ignore_eos = true};
  request.sampling.seed = seed;
  return request;
}

// Tests of engines that queue a step only when the one before is read, and of those that run ahead.
class BothWays : public testing::TestWithParam<bool> {
 protected:
  static bool run_ahead() { return GetParam(); }
};

// Engines of the model above, of both kinds.
class EngineBothWays : public BothWays {
 protected:
  static EngineOptions options(int64_t states = 4) {
    return {.device = "cpu",
            .threads = 2,
            .states = states,
            .step_tokens = 64,
            .run_ahead = run_ahead()};
  }
};

inline std::string way_name(const testing::TestParamInfo<bool>& info) {
  return info.param ? "ahead" : "in_turn";
}

// Holds the engine's thread inside a callback until it is opened.
class Gate {
 public:
  void wait() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }
  // Until some thread stands before the gate.
  void wait_for_visitor() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_ > 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int waiting_ = 0;
  bool open_ = false;
};

}  // namespace gsa::test
