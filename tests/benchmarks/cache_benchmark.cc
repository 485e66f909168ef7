// What it costs sequences that decode when states of others are kept: an engine of 16 sequences, at
// the end of each of whose prompts (32 to 96 random tokens, 16 to 48 generated) the prefix cache of
// 2 GiB takes a snapshot, and drops another.
//
//   cache_benchmark CONFIG.json DEVICE [STATE_TYPE...] [Google Benchmark's flags]
//
// none/STATE_TYPE: without the cache. prompts/...: with it. turns/...: the ends of answers too.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/files.h"
#include "engine/engine.h"
#include "kernels/error.h"

namespace gsa {
namespace {

constexpr int64_t kCacheBytes = int64_t{2} << 30;

class Requests {
 public:
  Requests(std::shared_ptr<const LoadedModel> model, const EngineOptions& options, bool turns)
      : vocabulary_(model->config.vocab_size), engine_(std::move(model), options), turns_(turns) {}

  // Returns how many tokens were generated.
  int64_t run(int count) {
    std::vector<std::future<Result>> results;
    for (int i = 0; i < count; ++i) results.push_back(engine_.submit(next()));
    int64_t tokens = 0;
    for (auto& result : results) {
      tokens += static_cast<int64_t>(result.get().completions.at(0).tokens.size());
    }
    return tokens;
  }

 private:
  Request next() {
    Request request;
    request.prompt.resize(32 + random_() % 65);
    for (int32_t& token : request.prompt) token = static_cast<int32_t>(random_() % vocabulary_);
    request.max_tokens = static_cast<int64_t>(16 + random_() % 33);
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    request.cache_turn = turns_;
    return request;
  }

  std::mt19937 random_{1};
  int64_t vocabulary_;
  Engine engine_;
  bool turns_;
};

void add(const std::shared_ptr<const LoadedModel>& model, const std::string& device,
         const std::string& state_type) {
  const DType type = type_named(state_type, kStateTypes);
  for (const std::string kept : {"none", "prompts", "turns"}) {
    const EngineOptions options{.device = device,
                                .states = 16,
                                .state_type = type,
                                .cache_bytes = kept == "none" ? 0 : kCacheBytes};
    benchmark::RegisterBenchmark(
        (kept + "/" + state_type).c_str(),
        [=](benchmark::State& state) {
          Requests requests(model, options, kept == "turns");
          // Steps of every size are known then, and the cache is full.
          const int64_t states = kCacheBytes / model->config.state_bytes();
          requests.run(static_cast<int>(std::clamp<int64_t>(states * 5 / 4, 64, 512)));
          int64_t tokens = 0;
          for ([[maybe_unused]] auto _ : state) tokens += requests.run(128);
          state.counters["tokens/s"] =
              benchmark::Counter(static_cast<double>(tokens), benchmark::Counter::kIsRate);
        })
        ->Iterations(4)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace
}  // namespace gsa

int main(int argc, char** argv) try {
  benchmark::Initialize(&argc, argv);
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: cache_benchmark CONFIG.json cpu|cuda [STATE_TYPE...] [--benchmark_...]\n");
    return 2;
  }
  const gsa::GsaConfig config = gsa::parse_hf_config(gsa::read_file(argv[1], 1 << 20), argv[1]);
  const auto model = gsa::random_model(config, gsa::DType::kBF16, argv[1]);
  std::vector<std::string> types(argv + 3, argv + argc);
  if (types.empty()) types = {"f32"};
  for (const std::string& type : types) gsa::add(model, argv[2], type);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
} catch (const gsa::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
