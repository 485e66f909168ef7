#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"

namespace gsa {

// Flags of every command that runs a model.
struct RunFlags {
  std::string model;
  std::string device = "auto";
  int threads = 0;
  std::string state_type = "f32";
  bool verbose = false;
};

void add_run_flags(CLI::App& command, RunFlags& flags);

// --state-type, which is one of them; `type` is a name for state_type().
void add_state_type_flag(CLI::App& command, std::string& type);

// --states and --memory, of commands that run several sequences.
struct StateFlags {
  int64_t states = 0;
  double memory_gib = 0;
};

void add_state_flags(CLI::App& command, StateFlags& flags);

// Flags that shape the text, named as llama.cpp and vLLM name them.
struct SamplingFlags {
  double temperature = 0.8;
  int32_t top_k = 40;
  double top_p = 0.95;
  double min_p = 0.05;
  double typical_p = 1;
  double repeat_penalty = 1;
  int64_t repeat_last_n = -1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::optional<uint64_t> seed;  // none: a random one
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> logit_bias;  // "ID+BIAS", "ID-BIAS"
  int64_t max_tokens = 128;
  int64_t min_tokens = 0;
  int32_t logprobs = 0;
  bool ignore_eos = false;
};

void add_sampling_flags(CLI::App& command, SamplingFlags& flags);

// The request the flags describe, without a prompt. Throws for a malformed --logit-bias.
Request make_request(const SamplingFlags& flags);

// The types a checkpoint's matrices may have, by name: "f32", "f16", "bf16", "q8", "q4".
std::vector<std::string> weight_type_names();
// REQUIRES: one of these names (throws otherwise).
DType weight_type(const std::string& name);

// The types that the memories of a state may have, by name: "f32", "bf16", "f16".
std::vector<std::string> state_type_names();
// REQUIRES: one of these names (throws otherwise).
DType state_type(const std::string& name);

// The text of -p or -f ("-": standard input). Throws where the file cannot be read.
std::string read_text(const std::string& path);

// "1 5 9" or "1,5,9". Throws gsa::Error naming what is no number.
std::vector<int32_t> parse_token_ids(const std::string& text);

}  // namespace gsa
