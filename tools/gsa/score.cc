#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "kernels/error.h"
#include "model/walk.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/interrupt.h"
#include "tools/gsa/result_json.h"
#include "tools/gsa/scoring.h"

namespace gsa {
namespace {

struct ScoreFlags {
  RunFlags run;
  std::string file, tokens, dump;
  bool json = false;
};

using Entries = std::vector<SafetensorsWriter::Entry>;

// tokens, logits, then hk.i and hv.i of every layer.
Entries dump_entries(const GsaConfig& c, int64_t T) {
  Entries entries = {{"logits", DType::kF32, {T, c.vocab_size}}};
  for (int64_t i = 0; i < c.num_layers; ++i) {
    entries.push_back(
        {"hk." + std::to_string(i), DType::kF32, {c.num_kv_heads, c.key_dim, c.num_slots}});
  }
  for (int64_t i = 0; i < c.num_layers; ++i) {
    entries.push_back(
        {"hv." + std::to_string(i), DType::kF32, {c.num_kv_heads, c.num_slots, c.value_dim}});
  }
  entries.push_back({"tokens", DType::kI32, {T}});
  return entries;
}

// Log-probabilities of tokens 1, 2, ...; writes the dump on the way.
std::vector<SampleResult> score(Scoring& scoring, const std::vector<int32_t>& tokens,
                                const std::string& dump) {
  const GsaConfig& config = scoring.model().config;
  const int64_t T = static_cast<int64_t>(tokens.size());
  const InterruptGuard guard;
  std::unique_ptr<SafetensorsWriter> writer;
  if (!dump.empty()) {
    writer = std::make_unique<SafetensorsWriter>(dump, dump_entries(config, T),
                                                 std::map<std::string, std::string>{});
  }
  std::vector<SampleResult> results;
  std::vector<float> rows;
  const StateHandle state = *scoring.states().acquire();
  walk(scoring.gsa_model(), scoring.states(), state, tokens,
       [&](int64_t first, const TensorView& logits) {
         if (guard.interrupted()) throw Error("interrupted; nothing was written");
         const int64_t scored = std::min(logits.shape[0], T - 1 - first);
         results.resize(first + scored);
         scoring.backend().score(logits.rows(0, scored),
                                 std::span(tokens).subspan(first + 1, scored), 0,
                                 std::span(results).subspan(first, scored));
         if (!writer) return;
         rows.resize(logits.elements());
         scoring.backend().download(logits.data, logits.bytes(), rows.data());
         writer->write(rows.data(), logits.bytes());
       });
  if (writer) {
    // A state begins with hk of all layers, then hv of all layers: the order of the entries.
    const HostFloats floats = scoring.states().export_state(state);
    const int64_t memory = config.num_layers * config.num_kv_heads * config.num_slots *
                           (config.key_dim + config.value_dim);
    writer->write(floats.data(), memory * sizeof(float));
    writer->write(tokens.data(), tokens.size() * sizeof(int32_t));
    writer->finish();
  }
  return results;
}

void print_text(const std::vector<int32_t>& tokens, const std::vector<SampleResult>& results,
                const Tokenizer* tokenizer) {
  double sum = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string piece = tokenizer == nullptr ? "" : tokenizer->piece(tokens[i]);
    if (i == 0) {
      std::printf("%zu\t%d\t-\t%s\n", i, tokens[i], piece.c_str());
      continue;
    }
    std::printf("%zu\t%d\t%.6f\t%s\n", i, tokens[i], results[i - 1].logprob, piece.c_str());
    sum += results[i - 1].logprob;
  }
  std::fprintf(stderr, "%zu tokens scored, sum of log-probabilities %.4f\n", results.size(), sum);
}

void print_json(const std::vector<int32_t>& tokens, const std::vector<SampleResult>& results) {
  nlohmann::ordered_json logprobs = nlohmann::ordered_json::array({nullptr});
  double sum = 0;
  for (const SampleResult& result : results) {
    logprobs.push_back(result.logprob);
    sum += result.logprob;
  }
  const nlohmann::ordered_json out = {{"tokens", tokens}, {"logprobs", logprobs}, {"sum", sum}};
  std::printf("%s\n", dump_json(out).c_str());
}

int run_score(const ScoreFlags& flags) {
  Scoring scoring(flags.run);
  const std::vector<int32_t> tokens = flags.tokens.empty()
                                          ? scoring.tokenizer().encode(read_text(flags.file))
                                          : parse_token_ids(flags.tokens);
  if (tokens.empty()) throw Error("there is nothing to score: no tokens were given");
  const std::vector<SampleResult> results = score(scoring, tokens, flags.dump);
  const LoadedModel& model = scoring.model();
  if (flags.json) {
    print_json(tokens, results);
  } else {
    print_text(tokens, results, model.tokenizer ? &*model.tokenizer : nullptr);
  }
  return 0;
}

}  // namespace

void add_score(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("score", "Log-probability of each token of a text");
  const auto flags = std::make_shared<ScoreFlags>();
  add_run_flags(*command, flags->run);
  CLI::Option* file =
      command->add_option("-f,--file", flags->file, "The text, - for standard input");
  CLI::Option* tokens =
      command->add_option("--tokens", flags->tokens, "Token ids, used as they are: \"1 5 9\"")
          ->excludes(file);
  command->add_option("--dump", flags->dump,
                      "Write tokens, all logits and the final memories to this safetensors file");
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([=, &action] {
    if (!*file && !*tokens) throw CLI::RequiredError("-f or --tokens");
    action = [flags] { return run_score(*flags); };
  });
}

}  // namespace gsa
