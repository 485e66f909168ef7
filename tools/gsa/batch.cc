#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_set>

#include "engine/engine.h"
#include "kernels/error.h"
#include "tools/gsa/batch_output.h"
#include "tools/gsa/batch_request.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/interrupt.h"
#include "tools/gsa/options.h"
#include "tools/gsa/progress_bar.h"
#include "tools/gsa/result_json.h"

namespace gsa {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

struct BatchFlags {
  RunFlags run;
  StateFlags states;
  std::string input, output;
  int64_t cache_mib = 256;
};

constexpr int64_t kDefaultStates = 16;
constexpr std::chrono::milliseconds kDrawEvery(200);

Json error_json(const std::string& message, const std::string& param) {
  Json error = {{"message", message}};
  error["param"] = param.empty() ? Json() : Json(param);
  return error;
}

Json result_json(const Json& id, const Request& request, const Result& result,
                 const Tokenizer* tokenizer) {
  Json out = {{"id", id}};
  if (!result.error.empty()) {
    out["error"] = error_json(result.error, "");
    return out;
  }
  out["choices"] = Json::array();
  int index = 0;
  for (const Completion& completion : result.completions) {
    Json choice = {{"index", index++}};
    if (tokenizer != nullptr) {
      choice["text"] = completion.text;
    } else {
      choice["tokens"] = completion.tokens;
    }
    choice["finish_reason"] = finish_reason_name(completion.finish_reason);
    choice["logprobs"] =
        request.sampling.logprobs > 0 ? logprobs_json(completion.logprobs, tokenizer) : Json();
    out["choices"].push_back(std::move(choice));
  }
  if (request.prompt_logprobs) {
    out["prompt_logprobs"] = logprobs_json(result.prompt_logprobs, tokenizer);
  }
  out["usage"] = usage_json(result);
  return out;
}

// Counts what happened and draws one line on a terminal.
class Progress {
 public:
  explicit Progress(int64_t total) : total_(total), terminal_(isatty(STDERR_FILENO) != 0) {}

  void skip() { ++skipped_; }
  void fail() { ++failed_; }
  void finish(const Result& result) {
    result.error.empty() ? ++done_ : ++failed_;
    prompt_tokens_ += result.prompt_tokens;
    cached_tokens_ += result.cached_tokens;
    for (const Completion& c : result.completions) {
      output_tokens_ += static_cast<int64_t>(c.tokens.size());
    }
  }

  void draw() const {
    if (!terminal_) return;
    const int64_t ended = done_ + failed_;
    const int64_t left = total_ - skipped_ - ended;
    const double eta = ended > 0 ? seconds() / static_cast<double>(ended) * left : 0;
    std::fprintf(stderr, "\r%lld of %lld requests, %.0f tokens/s, %.0f s left \x1b[K",
                 static_cast<long long>(ended + skipped_), static_cast<long long>(total_),
                 output_tokens_ / seconds(), eta);
  }

  void summarize() const {
    if (terminal_) std::fputs("\r\x1b[K", stderr);
    std::fprintf(stderr,
                 "%lld requests done, %lld failed, %lld skipped as finished before; "
                 "%lld prompt tokens (%lld from the cache), %lld generated, %.1f s, "
                 "%.0f generated tokens/s\n",
                 static_cast<long long>(done_), static_cast<long long>(failed_),
                 static_cast<long long>(skipped_), static_cast<long long>(prompt_tokens_),
                 static_cast<long long>(cached_tokens_), static_cast<long long>(output_tokens_),
                 seconds(), output_tokens_ / seconds());
  }

 private:
  double seconds() const {
    return std::chrono::duration<double>(Clock::now() - start_).count() + 1e-9;
  }

  int64_t total_;
  bool terminal_;
  Clock::time_point start_ = Clock::now();
  int64_t done_ = 0, failed_ = 0, skipped_ = 0;
  int64_t prompt_tokens_ = 0, cached_tokens_ = 0, output_tokens_ = 0;
};

bool blank(const std::string& line) { return line.find_first_not_of(" \t\r") == line.npos; }

int64_t count_lines(const std::string& path) {
  std::ifstream in(path);
  if (!in) throw Error("{}: cannot be read: {}", path, std::strerror(errno));
  int64_t lines = 0;
  for (std::string line; std::getline(in, line);) lines += !blank(line);
  return lines;
}

// Feeds the engine from the input file and the output file from the engine.
class BatchRun {
 public:
  BatchRun(Engine& engine, const BatchFlags& flags)
      : engine_(engine),
        tokenizer_(engine.model().tokenizer ? &*engine.model().tokenizer : nullptr),
        input_(flags.input),
        output_(flags.output),
        progress_(count_lines(flags.input)) {}

  // Returns when every line has its result, or soon after an interruption.
  void run() {
    const InterruptGuard guard;
    std::ifstream in(input_);
    int64_t number = 0;
    for (std::string line; !guard.interrupted() && !failed() && std::getline(in, line);) {
      ++number;
      if (!blank(line)) take_line(line, number, guard);
    }
    if (guard.interrupted()) {
      const std::lock_guard lock(mutex_);
      interrupted_ = true;
    }
    wait_until([this] { return running_ == 0 || interrupted_ || !failure_.empty(); }, guard);
    const std::lock_guard lock(mutex_);
    progress_.summarize();
    if (!failure_.empty()) throw Error("{}", failure_);
    if (interrupted_) throw Error("interrupted; the same command goes on where it stopped");
  }

 private:
  void take_line(const std::string& text, int64_t number, const InterruptGuard& guard) {
    const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    Json key = {{"line", number}};
    bool repeated = false;
    if (!line.is_discarded()) {
      const bool named = line.is_object() && line.contains("id") && !line["id"].is_null();
      const Json by_id = {{"id", named ? line["id"] : Json(number)}};
      repeated = !ids_.insert(BatchOutput::key_of(by_id)).second;
      if (!repeated) key = by_id;
    }
    if (output_.was_finished(BatchOutput::key_of(key))) {
      const std::lock_guard lock(mutex_);
      progress_.skip();
      return;
    }
    try {
      if (line.is_discarded()) throw RequestError("", "the line is no JSON");
      if (repeated) throw RequestError("id", "id: an earlier line has the same");
      submit(key["id"], parse_batch_request(line, tokenizer_), guard);
    } catch (const RequestError& error) {
      key["error"] = error_json(error.what(), error.param());
      output_.append(key);
      const std::lock_guard lock(mutex_);
      progress_.fail();
    }
  }

  void submit(const Json& id, Request request, const InterruptGuard& guard) {
    const auto shared = std::make_shared<Request>(std::move(request));
    const auto on_result = [this, id, shared](Result&& result) { deliver(id, *shared, result); };
    {
      const std::lock_guard lock(mutex_);
      ++running_;
    }
    try {
      // While the queue is full, the next result makes room.
      while (!engine_.submit(*shared, on_result) && !guard.interrupted()) {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, kDrawEvery);
        progress_.draw();
      }
    } catch (const RequestError&) {
      const std::lock_guard lock(mutex_);
      --running_;
      throw;
    }
  }

  bool failed() {
    const std::lock_guard lock(mutex_);
    return !failure_.empty();
  }

  // On the engine's thread.
  void deliver(const Json& id, const Request& request, const Result& result) {
    std::string failure;
    bool wanted;
    {
      const std::lock_guard lock(mutex_);
      wanted = !interrupted_ && failure_.empty();
    }
    if (wanted) {
      try {
        output_.append(result_json(id, request, result, tokenizer_));
      } catch (const Error& error) {
        failure = error.what();
      }
    }
    const std::lock_guard lock(mutex_);
    if (wanted && failure.empty()) progress_.finish(result);
    if (!failure.empty()) failure_ = failure;
    --running_;
    changed_.notify_all();
  }

  template <typename Condition>
  void wait_until(Condition condition, const InterruptGuard& guard) {
    std::unique_lock lock(mutex_);
    while (!condition() && !guard.interrupted()) {
      changed_.wait_for(lock, kDrawEvery);
      progress_.draw();
    }
    if (guard.interrupted()) interrupted_ = true;
  }

  Engine& engine_;
  const Tokenizer* tokenizer_;
  std::string input_;
  BatchOutput output_;
  std::unordered_set<std::string> ids_;  // of the lines so far, as keys
  std::mutex mutex_;                     // guards all below
  std::condition_variable changed_;
  Progress progress_;
  int64_t running_ = 0;
  bool interrupted_ = false;  // results from now on are not written: a later run makes them again
  std::string failure_;       // of writing the output
};

int run_batch(const BatchFlags& flags) {
  EngineOptions options{.device = flags.run.device,
                        .threads = flags.run.threads,
                        .states = flags.states.states,
                        .memory_bytes = static_cast<int64_t>(flags.states.memory_gib * 0x1p30),
                        .state_type = state_type(flags.run.state_type),
                        .queue_limit = 256,
                        .cache_bytes = flags.cache_mib << 20};
  if (options.states == 0 && options.memory_bytes == 0) options.states = kDefaultStates;
  // The run outlives the engine, whose callbacks it serves.
  std::unique_ptr<BatchRun> run;
  options.on_load = loading_bar();
  Engine engine(load_model(flags.run.model), options);
  run = std::make_unique<BatchRun>(engine, flags);
  spdlog::debug("{} states of {:.2f} MiB on {}", engine.capacity(), engine.state_bytes() / 0x1p20,
                engine.backend().description());
  run->run();
  return 0;
}

}  // namespace

void add_batch(CLI::App& program, Action& action) {
  CLI::App* command =
      program.add_subcommand("batch", "Run the requests of a JSONL file, many at a time");
  const auto flags = std::make_shared<BatchFlags>();
  add_run_flags(*command, flags->run);
  add_state_flags(*command, flags->states);
  command->add_option("IN", flags->input, "One JSON request a line")->required();
  command->add_option("OUT", flags->output, "One JSON result a line; goes on where a run stopped")
      ->required();
  command->add_option("--cache", flags->cache_mib, "MiB for prompts that begin alike; 0: none")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24))
      ->capture_default_str();
  command->callback([=, &action] { action = [flags] { return run_batch(*flags); }; });
}

}  // namespace gsa
