// How long the forward pass of one step takes, without engine and sampling: steps of a published
// size on random weights, queued one after the other.
//
//   step_benchmark CONFIG.json DEVICE [TYPE] [Google Benchmark's flags]
//
// TYPE is f32, f16, bf16 (where none is given), q8 or q4.
//
// decode/B: one token for each of B sequences; the counters say what share of the read bandwidth,
// measured at the start, weights and states come to. prefill/T: T tokens of one sequence.

#include <benchmark/benchmark.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/config.h"
#include "kernels/error.h"
#include "model/gsa_model.h"
#include "model/random_weights.h"
#include "model/state_pool.h"

namespace gsa {
namespace {

constexpr int64_t kSequences = 256;
constexpr int64_t kPrompt = 2048;

class Steps {
 public:
  Steps(const std::string& config_path, const std::string& device, DType type)
      : config_(read_config(config_path)),
        weights_(make_random_weights(config_, type, 1)),
        backend_(make_backend(device, 0)),
        bandwidth_(backend_->measure_read_bandwidth()),
        states_(config_, *backend_, kSequences),
        model_(config_, weights_.weights, *backend_,
               {.tokens = kPrompt, .segments = kSequences, .logit_rows = kSequences}) {
    for (int64_t i = 0; i < kSequences; ++i) handles_.push_back(*states_.acquire());
  }

  void decode(benchmark::State& state) {
    const int64_t B = state.range(0);
    Batch batch;
    for (int64_t i = 0; i < B; ++i) {
      const int32_t token = static_cast<int32_t>(i % config_.vocab_size);
      batch.add(handles_[i], {&token, 1}, Logits::kLast);
    }
    run(batch, B, state);
    const double bytes = model_.weight_bytes() + 2.0 * B * states_.state_bytes();
    const benchmark::Counter::Flags rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["bytes/s"] = benchmark::Counter(bytes, rate);
    state.counters["of_bandwidth"] = benchmark::Counter(bytes / bandwidth_, rate);
  }

  void prefill(benchmark::State& state) {
    std::vector<int32_t> tokens(state.range(0));
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(i * 7919 % config_.vocab_size);
    }
    Batch batch;
    batch.add(handles_[0], tokens, Logits::kLast);
    run(batch, state.range(0), state);
  }

 private:
  static GsaConfig read_config(const std::string& path) {
    std::ifstream file(path);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    if (text.empty()) throw Error("{}: cannot be read", path);
    return parse_hf_config(text, path);
  }

  void run(const Batch& batch, int64_t tokens, benchmark::State& state) {
    // A backend may record a step before it replays it.
    for (int i = 0; i < 3; ++i) model_.forward(batch, states_);
    backend_->synchronize();
    while (state.KeepRunningBatch(8)) {
      for (int i = 0; i < 8; ++i) model_.forward(batch, states_);
      backend_->synchronize();
    }
    state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens),
                                                    benchmark::Counter::kIsIterationInvariantRate);
  }

  GsaConfig config_;
  RandomWeights weights_;
  std::unique_ptr<Backend> backend_;
  double bandwidth_;
  StatePool states_;
  GsaModel model_;
  std::vector<StateHandle> handles_;
};

DType type_named(std::string_view name) {
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4}) {
    if (dtype_name(type) == name) return type;
  }
  throw Error("type {}: expected f32, f16, bf16, q8 or q4", name);
}

}  // namespace
}  // namespace gsa

int main(int argc, char** argv) try {
  benchmark::Initialize(&argc, argv);
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: step_benchmark CONFIG.json cpu|cuda [TYPE] [--benchmark_...]\n");
    return 2;
  }
  gsa::Steps steps(argv[1], argv[2], gsa::type_named(argc == 4 ? argv[3] : "bf16"));
  const auto decode = [&](benchmark::State& state) { steps.decode(state); };
  const auto prefill = [&](benchmark::State& state) { steps.prefill(state); };
  benchmark::RegisterBenchmark("decode", decode)
      ->ArgsProduct({{1, 2, 4, 8, 16, 32, 64, 256}})
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::RegisterBenchmark("prefill", prefill)
      ->ArgsProduct({{512, 2048}})
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
} catch (const gsa::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
