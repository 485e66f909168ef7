#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "model/walk.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/result_json.h"
#include "tools/gsa/scoring.h"

namespace gsa {
namespace {

struct PerplexityFlags {
  RunFlags run;
  std::string file;
  int64_t window = 512;
  bool json = false;
};

// Sum of -ln p of all tokens of a window, from a fresh state that was fed BOS.
double window_nll(Scoring& scoring, std::span<const int32_t> window, int32_t bos) {
  std::vector<int32_t> fed = {bos};
  fed.insert(fed.end(), window.begin(), window.end() - 1);
  const StateHandle state = *scoring.states().acquire();
  double nll = 0;
  walk(scoring.gsa_model(), scoring.states(), state, fed,
       [&](int64_t first, const TensorView& logits) {
         std::vector<SampleResult> results(logits.shape[0]);
         scoring.backend().score(logits, window.subspan(first, logits.shape[0]), 0, results);
         for (const SampleResult& result : results) nll -= result.logprob;
       });
  return nll;
}

int run_perplexity(const PerplexityFlags& flags) {
  Scoring scoring(flags.run);
  const std::string text = read_text(flags.file);
  const std::vector<int32_t> tokens = scoring.tokenizer().encode_plain(text);
  const int64_t bos = scoring.model().config.bos_token_id;
  if (tokens.empty()) throw Error("{}: holds no text", flags.file);
  if (bos < 0) throw Error("{}: the model has no BOS token to begin windows with", flags.run.model);
  double sum = 0;
  for (size_t first = 0; first < tokens.size(); first += flags.window) {
    const size_t count = std::min<size_t>(flags.window, tokens.size() - first);
    sum += window_nll(scoring, std::span(tokens).subspan(first, count), static_cast<int32_t>(bos));
  }
  const double nll = sum / static_cast<double>(tokens.size());
  const double bits_per_byte = sum / std::log(2.0) / static_cast<double>(text.size());
  if (flags.json) {
    const nlohmann::ordered_json out = {{"tokens", tokens.size()},
                                        {"nll", nll},
                                        {"ppl", std::exp(nll)},
                                        {"bits_per_byte", bits_per_byte}};
    std::printf("%s\n", dump_json(out).c_str());
  } else {
    std::printf("tokens %zu\nnll %.6f\nppl %.6f\nbits_per_byte %.6f\n", tokens.size(), nll,
                std::exp(nll), bits_per_byte);
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
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([=, &action] { action = [flags] { return run_perplexity(*flags); }; });
}

}  // namespace gsa
