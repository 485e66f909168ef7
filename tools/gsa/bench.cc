#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kernels/error.h"
#include "tools/gsa/bench_table.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/interrupt.h"
#include "tools/gsa/options.h"
#include "tools/gsa/progress_bar.h"

namespace gsa {
namespace {

struct BenchFlags {
  RunFlags run;
  std::string config, type = "bf16", format = "md";
  std::vector<int64_t> prompts, generations, batches, depths;
  int repetitions = 3;
  int64_t step_tokens = 0;  // 0: the engine's choice
  bool feed_depth = false;
};

// A state's cost depends on its size, not on what it has read. Unless --feed-depth asks for all of
// a depth, no more than this is really fed, and the state then stands for the rest too.
constexpr int64_t kFedDepth = 512;

using Seconds = std::chrono::duration<double>;

class Bench {
 public:
  explicit Bench(const BenchFlags& flags)
      : flags_(flags),
        model_(make_model(flags)),
        meter_(make_backend(flags.run.device, flags.run.threads)),
        free_before_(meter_->free_memory()),
        engine_(model_, {.device = flags.run.device,
                         .threads = flags.run.threads,
                         .states = *std::max_element(flags.batches.begin(), flags.batches.end()),
                         .state_type = state_type(flags.run.state_type),
                         .step_tokens = flags.step_tokens,
                         .on_load = loading_bar()}) {}

  void run() {
    const InterruptGuard guard;
    BenchTable table(flags_.format);
    for (int64_t depth : flags_.depths) {
      const std::shared_ptr<const Snapshot> start = snapshot_at(depth);
      for (int64_t batch : flags_.batches) {
        for (int64_t n : flags_.prompts) {
          if (n > 0 && !guard.interrupted()) table.add(measure(start, depth, batch, n, 0));
        }
        for (int64_t n : flags_.generations) {
          if (n > 0 && !guard.interrupted()) table.add(measure(start, depth, batch, 0, n));
        }
      }
    }
    table.finish();
    log_memory();
    if (guard.interrupted()) throw Error("interrupted");
  }

 private:
  static std::shared_ptr<const LoadedModel> make_model(const BenchFlags& flags) {
    if (flags.config.empty()) return load_model(flags.run.model);
    const GsaConfig config = parse_hf_config(read_text(flags.config), flags.config);
    return random_model(config, weight_type(flags.type),
                        std::filesystem::path(flags.config).stem().string());
  }

  // What the engine has of a device to itself.
  void log_memory() const {
    if (engine_.backend().name() == "cpu") return;
    const ModelWeights& w = model_->weights;
    const bool tied = w.lm_head.data == w.embeddings.data;
    const int64_t weights =
        engine_.weight_bytes() + (tied ? 0 : static_cast<int64_t>(w.embeddings.bytes()));
    const int64_t states = engine_.capacity() * engine_.state_bytes();
    const int64_t rest = free_before_ - meter_->free_memory() - weights - states;
    spdlog::debug("device memory: {:.3f} GB of weights, {:.3f} GB of {} states, {:.3f} GB besides",
                  weights * 1e-9, states * 1e-9, engine_.capacity(), rest * 1e-9);
  }

  std::vector<int32_t> random_tokens(int64_t count) {
    std::vector<int32_t> tokens(count);
    for (int32_t& token : tokens)
      token = static_cast<int32_t>(random_() % model_->config.vocab_size);
    return tokens;
  }

  Request request(int64_t max_tokens) const {
    Request request;
    request.max_tokens = max_tokens;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    return request;
  }

  // The state after `depth` tokens (and at least one, to generate from).
  std::shared_ptr<const Snapshot> snapshot_at(int64_t depth) {
    Request feed = request(0);
    const int64_t fed = flags_.feed_depth ? depth : std::min(depth, kFedDepth);
    feed.prompt = random_tokens(std::max<int64_t>(fed, 1));
    feed.keep_snapshot = true;
    Snapshot snapshot = *engine_.submit(std::move(feed)).get().completions[0].snapshot;
    const std::vector<int32_t> rest = random_tokens(depth - fed);
    snapshot.tokens.insert(snapshot.tokens.end(), rest.begin(), rest.end());
    return std::make_shared<const Snapshot>(std::move(snapshot));
  }

  BenchRow measure(const std::shared_ptr<const Snapshot>& start, int64_t depth, int64_t batch,
                   int64_t n_prompt, int64_t n_gen) {
    const GsaConfig& config = model_->config;
    BenchRow row{.model_type = model_->identity.name + " " + model_->type,
                 .model_size = engine_.weight_bytes(),
                 .n_params = config.parameters(),
                 .type = model_->type,
                 .state_type = std::string(dtype_name(engine_.state_type())),
                 .state_size = engine_.state_bytes(),
                 .backend = std::string(engine_.backend().name()),
                 .n_threads = engine_.backend().threads(),
                 .batch = batch,
                 .n_prompt = n_prompt,
                 .n_gen = n_gen,
                 .n_depth = depth};
    const double state_bytes = 2.0 * static_cast<double>(engine_.state_bytes());  // read, written
    const double tokens = static_cast<double>(batch * std::max(n_prompt, n_gen));
    const double steps = n_gen > 0
                             ? static_cast<double>(n_gen)
                             : static_cast<double>((batch * n_prompt + engine_.step_tokens() - 1) /
                                                   engine_.step_tokens());
    const double states_touched = n_gen > 0 ? static_cast<double>(batch) : 1;
    row.bytes_per_token =
        steps * (static_cast<double>(engine_.weight_bytes()) + states_touched * state_bytes) /
        tokens;
    // A prompt of depth 0 is a sequence's first, with no state to restore.
    const auto from = depth > 0 || n_gen > 0 ? start : nullptr;
    once(from, batch, n_prompt, std::min<int64_t>(n_gen, 4));  // warm up
    double bandwidth = meter_->measure_read_bandwidth();
    for (int i = 0; i < flags_.repetitions; ++i) {
      const EngineStats before = engine_.stats();
      row.samples_ts.push_back(tokens / once(from, batch, n_prompt, n_gen).count());
      const EngineStats after = engine_.stats();
      const double seconds = after.device_seconds - before.device_seconds;
      if (n_gen > 0 && seconds > 0) {
        row.samples_device_ts.push_back(batch * (after.steps - before.steps) / seconds);
      }
    }
    row.read_bandwidth = std::max(bandwidth, meter_->measure_read_bandwidth());
    return row;
  }

  // One repetition through the engine: `batch` requests at once. A prompt is timed from its start
  // to its first logits, generation from the first token of the last request to the end.
  Seconds once(const std::shared_ptr<const Snapshot>& from, int64_t batch, int64_t n_prompt,
               int64_t n_gen) {
    std::vector<std::future<Result>> futures;
    for (int64_t i = 0; i < batch; ++i) {
      Request r = request(n_gen > 0 ? n_gen + 1 : 0);
      r.from = from;
      r.prompt = random_tokens(n_prompt);
      futures.push_back(engine_.submit(std::move(r)));
    }
    auto begin = std::chrono::steady_clock::time_point::max();
    auto first = std::chrono::steady_clock::time_point::min();
    auto end = std::chrono::steady_clock::time_point::min();
    for (std::future<Result>& future : futures) {
      const Result result = future.get();
      if (!result.error.empty()) throw Error("{}", result.error);
      begin = std::min(begin, result.started);
      first = std::max(first, result.first_token);
      end = std::max(end, result.finished);
    }
    return n_gen > 0 ? end - first : first - begin;
  }

  BenchFlags flags_;
  std::shared_ptr<const LoadedModel> model_;
  std::unique_ptr<Backend> meter_;
  int64_t free_before_;  // bytes of device memory
  Engine engine_;
  std::mt19937 random_{1};
};

}  // namespace

void add_bench(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("bench", "Measure throughput");
  const auto flags = std::make_shared<BenchFlags>();
  add_run_flags(*command, flags->run);
  CLI::Option* model = command->get_option("--model")->required(false);
  CLI::Option* config =
      command
          ->add_option("--config", flags->config,
                       "A Hugging Face config.json: run its shape on random weights")
          ->excludes(model);
  command->add_option("--type", flags->type, "Type of the random weights")
      ->check(CLI::IsMember(weight_type_names()))
      ->needs(config)
      ->capture_default_str();
  const auto list = [&](const char* name, std::vector<int64_t>& values,
                        std::vector<int64_t> defaults, const char* text) {
    values = std::move(defaults);
    return command->add_option(name, values, text)
        ->delimiter(',')
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
        ->capture_default_str();
  };
  list("-p,--n-prompt", flags->prompts, {512}, "Prompt lengths to measure; 0: none");
  list("-n,--n-gen", flags->generations, {128}, "Numbers of tokens to generate; 0: none");
  list("-b,--batch", flags->batches, {1}, "Sequences at the same time")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  list("-d,--depth", flags->depths, {0}, "Tokens the sequences have behind them");
  command->add_flag("--feed-depth", flags->feed_depth,
                    fmt::format("Really read all tokens of a depth, not the first {} alone; the "
                                "state has the same size and cost either way",
                                kFedDepth));
  command->add_option("-r,--repetitions", flags->repetitions, "Repetitions of each measurement")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      ->add_option("--step-tokens", flags->step_tokens,
                   "Most tokens in a step; 0: 512 on a CPU, 4096 on a GPU")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("-o,--output", flags->format, "Form of the table")
      ->check(CLI::IsMember({"md", "csv", "json", "jsonl"}))
      ->capture_default_str();
  command->callback([=, &action] {
    if (!*model && !*config) throw CLI::RequiredError("-m or --config");
    action = [flags] {
      Bench(*flags).run();
      return 0;
    };
  });
}

}  // namespace gsa
