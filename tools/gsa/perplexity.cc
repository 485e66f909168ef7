#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "model/walk.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/divergence.h"
#include "tools/gsa/result_json.h"
#include "tools/gsa/scoring.h"

namespace gsa {
namespace {

struct PerplexityFlags {
  RunFlags run;
  std::string file;
  std::string base;  // a checkpoint to compare with, or empty
  int64_t window = 512;
  bool json = false;
};

using Visit = std::function<void(int64_t first, const TensorView& logits)>;

// Feeds BOS and all tokens of a window but the last to a fresh state.
void walk_window(Scoring& scoring, std::span<const int32_t> window, int32_t bos,
                 const Visit& visit) {
  std::vector<int32_t> fed = {bos};
  fed.insert(fed.end(), window.begin(), window.end() - 1);
  const StateHandle state = *scoring.states().acquire();
  walk(scoring.gsa_model(), scoring.states(), state, fed, visit);
}

std::vector<float> host_copy(Scoring& scoring, const TensorView& logits) {
  std::vector<float> host(logits.elements());
  scoring.backend().download(logits.data, logits.bytes(), host.data());
  return host;
}

// Perplexity and, beside a base model, divergence, window by window.
class Measure {
 public:
  Measure(Scoring& scoring, Scoring* base, int32_t bos)
      : scoring_(scoring), base_(base), bos_(bos) {}

  void add(std::span<const int32_t> window) {
    std::vector<float> expected;
    if (base_ != nullptr) {
      walk_window(*base_, window, bos_, [&](int64_t, const TensorView& logits) {
        const std::vector<float> rows = host_copy(*base_, logits);
        expected.insert(expected.end(), rows.begin(), rows.end());
      });
    }
    walk_window(scoring_, window, bos_, [&](int64_t first, const TensorView& logits) {
      std::vector<SampleResult> results(logits.shape[0]);
      scoring_.backend().score(logits, window.subspan(first, logits.shape[0]), 0, results);
      for (const SampleResult& result : results) nll_ -= result.logprob;
      if (base_ != nullptr) compare(expected, first, logits);
    });
  }

  double nll() const { return nll_; }  // sum of -ln p of all tokens
  const Divergence& divergence() const { return divergence_; }

 private:
  void compare(const std::vector<float>& expected, int64_t first, const TensorView& logits) {
    const size_t N = logits.shape[1];
    const std::vector<float> found = host_copy(scoring_, logits);
    for (size_t row = 0; row * N < found.size(); ++row) {
      divergence_.add(std::span(expected).subspan((first + row) * N, N),
                      std::span(found).subspan(row * N, N));
    }
  }

  Scoring& scoring_;
  Scoring* base_;
  int32_t bos_;
  double nll_ = 0;
  Divergence divergence_;
};

// The base model, which must speak of the same tokens.
std::unique_ptr<Scoring> open_base(const PerplexityFlags& flags, const Scoring& scoring) {
  if (flags.base.empty()) return nullptr;
  RunFlags run = flags.run;
  run.model = flags.base;
  run.state_type = RunFlags().state_type;
  auto base = std::make_unique<Scoring>(run);
  const int64_t found = base->model().config.vocab_size;
  const int64_t expected = scoring.model().config.vocab_size;
  if (found != expected) {
    throw Error("--kl {}: has a vocabulary of {}, expected {} as of {}", flags.base, found,
                expected, flags.run.model);
  }
  return base;
}

int run_perplexity(const PerplexityFlags& flags) {
  Scoring scoring(flags.run);
  const std::string text = read_text(flags.file);
  const std::vector<int32_t> tokens = scoring.tokenizer().encode_plain(text);
  const int64_t bos = scoring.model().config.bos_token_id;
  if (tokens.empty()) throw Error("{}: holds no text", flags.file);
  if (bos < 0) throw Error("{}: the model has no BOS token to begin windows with", flags.run.model);
  const std::unique_ptr<Scoring> base = open_base(flags, scoring);
  Measure measure(scoring, base.get(), static_cast<int32_t>(bos));
  for (size_t first = 0; first < tokens.size(); first += flags.window) {
    const size_t count = std::min<size_t>(flags.window, tokens.size() - first);
    measure.add(std::span(tokens).subspan(first, count));
  }
  const double sum = measure.nll();
  const double nll = sum / static_cast<double>(tokens.size());
  const double bits_per_byte = sum / std::log(2.0) / static_cast<double>(text.size());
  nlohmann::ordered_json out = {{"tokens", tokens.size()},
                                {"nll", nll},
                                {"ppl", std::exp(nll)},
                                {"bits_per_byte", bits_per_byte}};
  if (base) {
    out["kl_mean"] = measure.divergence().mean();
    out["kl_p99"] = measure.divergence().percentile(99);
    out["top1_agreement"] = measure.divergence().top1_agreement();
  }
  if (flags.json) {
    std::printf("%s\n", dump_json(out).c_str());
  } else {
    for (const auto& [key, value] : out.items()) {
      if (value.is_number_integer()) {
        std::printf("%s %lld\n", key.c_str(), value.get<long long>());
      } else {
        std::printf("%s %.6f\n", key.c_str(), value.get<double>());
      }
    }
  }
  return 0;
}

}  // namespace

void add_perplexity(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("perplexity", "How well a model predicts a text");
  const auto flags = std::make_shared<PerplexityFlags>();
  add_run_flags(*command, flags->run);
  command->add_option("-f,--file", flags->file, "The text, - for standard input")->required();
  command->add_option("--window", flags->window, "Tokens scored from one fresh state")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command
      ->add_option("--kl", flags->base,
                   "A checkpoint, such as the one that MODEL was quantized from: also print the "
                   "divergence from its predictions, which it makes with a state of f32")
      ->type_name("BASE");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([=, &action] { action = [flags] { return run_perplexity(*flags); }; });
}

}  // namespace gsa
