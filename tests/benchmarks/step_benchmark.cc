// How long the forward pass of one step takes, without engine and sampling: steps of a published
// size on random weights, queued one after the other.
//
//   step_benchmark CONFIG.json DEVICE [TYPE [STATE_TYPE...]] [Google Benchmark's flags]
//
// TYPE, of the weights, is f32, f16, bf16 (where none is given), q8 or q4.
//
// decode/STATE_TYPE/B: one token for each of B sequences with states of this type (f32 where none
// is given); the counters say what share of the read bandwidth, measured at the start, weights and
// states come to. prefill/STATE_TYPE/T: T tokens of one sequence. With
// --benchmark_enable_random_interleaving the types take turns, on a machine that does other work.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
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
        model_(config_, weights_.weights, *backend_,
               {.tokens = kPrompt, .segments = kSequences, .logit_rows = kSequences}) {}

  void decode(DType type, benchmark::State& state) {
    const int64_t B = state.range(0);
    States& states = states_of(type, B);
    Batch batch;
    for (int64_t i = 0; i < B; ++i) {
      const int32_t token = static_cast<int32_t>(i % config_.vocab_size);
      batch.add(states.handles[i], {&token, 1}, Logits::kLast);
    }
    run(batch, B, states.pool, state);
    const double bytes = model_.weight_bytes() + 2.0 * B * states.pool.state_bytes();
    const benchmark::Counter::Flags rate = benchmark::Counter::kIsIterationInvariantRate;
    state.counters["bytes/s"] = benchmark::Counter(bytes, rate);
    state.counters["of_bandwidth"] = benchmark::Counter(bytes / bandwidth_, rate);
  }

  void prefill(DType type, benchmark::State& state) {
    States& states = states_of(type, 1);
    std::vector<int32_t> tokens(state.range(0));
    for (size_t i = 0; i < tokens.size(); ++i) {
      tokens[i] = static_cast<int32_t>(i * 7919 % config_.vocab_size);
    }
    Batch batch;
    batch.add(states.handles[0], tokens, Logits::kLast);
    run(batch, state.range(0), states.pool, state);
  }

 private:
  struct States {
    StatePool pool;
    std::vector<StateHandle> handles;
  };

  // With at least so many states; what is not acquired takes no memory on a CPU.
  States& states_of(DType type, int64_t count) {
    std::unique_ptr<States>& states = states_[type];
    if (!states) {
      states = std::make_unique<States>(StatePool(config_, *backend_, kSequences, type));
    }
    while (std::ssize(states->handles) < count) states->handles.push_back(*states->pool.acquire());
    return *states;
  }

  static GsaConfig read_config(const std::string& path) {
    std::ifstream file(path);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    if (text.empty()) throw Error("{}: cannot be read", path);
    return parse_hf_config(text, path);
  }

  void run(const Batch& batch, int64_t tokens, StatePool& states, benchmark::State& state) {
    // A backend may record a step before it replays it.
    for (int i = 0; i < 3; ++i) model_.forward(batch, states);
    backend_->synchronize();
    while (state.KeepRunningBatch(8)) {
      for (int i = 0; i < 8; ++i) model_.forward(batch, states);
      backend_->synchronize();
    }
    state.counters["tokens/s"] = benchmark::Counter(static_cast<double>(tokens),
                                                    benchmark::Counter::kIsIterationInvariantRate);
  }

  GsaConfig config_;
  RandomWeights weights_;
  std::unique_ptr<Backend> backend_;
  double bandwidth_;
  GsaModel model_;
  std::map<DType, std::unique_ptr<States>> states_;
};

constexpr DType kWeightTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4};

}  // namespace
}  // namespace gsa

int main(int argc, char** argv) try {
  benchmark::Initialize(&argc, argv);
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: step_benchmark CONFIG.json cpu|cuda [TYPE [STATE_TYPE...]] "
                 "[--benchmark_...]\n");
    return 2;
  }
  const gsa::DType weights = gsa::type_named(argc > 3 ? argv[3] : "bf16", gsa::kWeightTypes);
  std::vector<std::string> types(argv + std::min(argc, 4), argv + argc);
  if (types.empty()) types = {"f32"};
  gsa::Steps steps(argv[1], argv[2], weights);
  for (const std::string& name : types) {
    const gsa::DType type = gsa::type_named(name, gsa::kStateTypes);
    const auto add = [&](const char* test, const std::vector<int64_t>& sizes, auto run) {
      for (int64_t size : sizes) {
        benchmark::RegisterBenchmark((std::string(test) + "/" + name).c_str(), run)
            ->Arg(size)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    };
    add("decode", {1, 2, 4, 8, 16, 32, 64, 256},
        [&, type](benchmark::State& state) { steps.decode(type, state); });
    add("prefill", {512, 2048}, [&, type](benchmark::State& state) { steps.prefill(type, state); });
  }
  benchmark::RunSpecifiedBenchmarks();
  return 0;
} catch (const gsa::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
