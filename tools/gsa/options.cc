#include "tools/gsa/options.h"

#include <spdlog/spdlog.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <random>
#include <span>

#include "kernels/error.h"

namespace gsa {
namespace {

// A finite number >= 0, or > 0.
CLI::Validator number_from_zero(bool zero_too) {
  const char* what = zero_too ? "a number of at least 0" : "a number above 0";
  return CLI::Validator(
      [=](const std::string& text) {
        double value = 0;
        const bool number = CLI::detail::lexical_cast(text, value) && std::isfinite(value);
        if (number && (value > 0 || (zero_too && value == 0))) return std::string();
        return fmt::format("expected {}, found {}", what, text);
      },
      zero_too ? "FLOAT >= 0" : "FLOAT > 0");
}

constexpr DType kWeightTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8, DType::kQ4};

std::vector<std::string> names_of(std::span<const DType> types) {
  std::vector<std::string> names;
  for (DType type : types) names.emplace_back(dtype_name(type));
  return names;
}

}  // namespace

void add_run_flags(CLI::App& command, RunFlags& flags) {
  command.add_option("-m,--model", flags.model, "A checkpoint made by `gsa convert`")->required();
  command.add_option("--device", flags.device, "Where to run")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--threads", flags.threads, "Threads; 0: one per physical core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  add_state_type_flag(command, flags.state_type);
  command.add_flag_callback("--verbose", [] { spdlog::set_level(spdlog::level::debug); })
      ->description("Say more on stderr");
}

void add_state_type_flag(CLI::App& command, std::string& type) {
  command.add_option("--state-type", type, "How memories are stored; 16 bits take half the bytes")
      ->check(CLI::IsMember(state_type_names()))
      ->capture_default_str();
}

void add_state_flags(CLI::App& command, StateFlags& flags) {
  CLI::Option* states =
      command.add_option("--states", flags.states, "Sequences that run at the same time")
          ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command.add_option("--memory", flags.memory_gib, "The same as GiB of memory for their states")
      ->check(number_from_zero(false))
      ->excludes(states);
}

void add_sampling_flags(CLI::App& command, SamplingFlags& f) {
  constexpr int64_t kMany = std::numeric_limits<int32_t>::max();
  const auto option = [&](const char* name, auto& value, const char* text) {
    return command.add_option(name, value, text)->capture_default_str();
  };
  option("-n,--max-tokens", f.max_tokens, "Tokens to generate")
      ->check(CLI::Range(int64_t{0}, kMany));
  option("--min-tokens", f.min_tokens, "No end of text before")
      ->check(CLI::Range(int64_t{0}, kMany));
  option("--temp", f.temperature, "Temperature; 0: always the likeliest token")
      ->check(number_from_zero(true));
  option("--top-k", f.top_k, "Only the K likeliest tokens; 0: off")
      ->check(CLI::Range(int64_t{0}, kMany));
  option("--top-p", f.top_p, "Only the likeliest tokens that hold this probability; 1: off")
      ->check(CLI::Range(0.0, 1.0));
  option("--min-p", f.min_p, "Only tokens this likely, relative to the likeliest; 0: off")
      ->check(CLI::Range(0.0, 1.0));
  option("--typical", f.typical_p, "Locally typical sampling; 1: off")->check(CLI::Range(0.0, 1.0));
  option("--repeat-penalty", f.repeat_penalty, "Penalty of repeated tokens; 1: off")
      ->check(number_from_zero(false));
  option("--repeat-last-n", f.repeat_last_n, "Tokens the repeat penalty looks back at; -1: all")
      ->check(CLI::Range(int64_t{-1}, kMany));
  option("--presence-penalty", f.presence_penalty, "Taken off the logit of generated tokens");
  option("--frequency-penalty", f.frequency_penalty, "The same for each time they were generated");
  command.add_option("--logit-bias", f.logit_bias, "Added to a token's logit: ID+BIAS or ID-BIAS");
  command.add_option("--seed", f.seed, "Of the random numbers; a random one by default");
  command.add_option("--stop", f.stop, "End the text before this string (repeatable)")
      ->allow_extra_args(false);
  command
      .add_option("--stop-token", f.stop_token_ids, "End the text at this token id (repeatable)")
      ->allow_extra_args(false);
  command.add_flag("--ignore-eos", f.ignore_eos, "Go on after the end-of-text token");
  option("--logprobs", f.logprobs, "Report the N likeliest tokens at each step (with --json)")
      ->check(CLI::Range(int64_t{0}, kMany));
}

namespace {

LogitBias parse_logit_bias(const std::string& text) {
  LogitBias bias;
  const char* end = text.data() + text.size();
  const auto [sign, id_error] = std::from_chars(text.data(), end, bias.token);
  if (id_error == std::errc() && sign != end && (*sign == '+' || *sign == '-')) {
    const auto [rest, error] = std::from_chars(sign + (*sign == '+'), end, bias.bias);
    if (error == std::errc() && rest == end) return bias;
  }
  throw Error("--logit-bias {}: expected ID+BIAS or ID-BIAS, as in 29+1.5", text);
}

}  // namespace

Request make_request(const SamplingFlags& f) {
  Request request;
  SamplingParams& s = request.sampling;
  s.temperature = f.temperature;
  s.top_k = f.top_k;
  s.top_p = f.top_p;
  s.min_p = f.min_p;
  s.typical_p = f.typical_p;
  s.repetition_penalty = f.repeat_penalty;
  s.presence_penalty = f.presence_penalty;
  s.frequency_penalty = f.frequency_penalty;
  s.seed = f.seed ? *f.seed : std::random_device()();
  s.logprobs = f.logprobs;
  for (const std::string& text : f.logit_bias) s.logit_bias.push_back(parse_logit_bias(text));
  request.repeat_last_n = f.repeat_last_n;
  request.max_tokens = f.max_tokens;
  request.min_tokens = f.min_tokens;
  request.stop = f.stop;
  request.stop_token_ids = f.stop_token_ids;
  request.ignore_eos = f.ignore_eos;
  return request;
}

std::string read_text(const std::string& path) {
  if (path == "-") return {std::istreambuf_iterator<char>(std::cin), {}};
  std::error_code none;
  if (std::filesystem::is_directory(path, none)) {
    throw Error("{}: a folder, expected a file of text", path);
  }
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw Error("{}: cannot be read: {}", path, std::strerror(errno));
  return text;
}

std::vector<std::string> weight_type_names() { return names_of(kWeightTypes); }

DType weight_type(const std::string& name) { return type_named(name, kWeightTypes); }

std::vector<std::string> state_type_names() { return names_of(kStateTypes); }

DType state_type(const std::string& name) { return type_named(name, kStateTypes); }

std::vector<int32_t> parse_token_ids(const std::string& text) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* end = at + text.size();
  while (true) {
    while (at != end && (*at == ' ' || *at == ',' || *at == '\n' || *at == '\t')) ++at;
    if (at == end) return ids;
    int32_t id = 0;
    const auto [rest, error] = std::from_chars(at, end, id);
    if (error != std::errc()) {
      throw Error("--tokens: expected token ids such as \"1 5 9\", found \"{}\"",
                  std::string(at, std::min<size_t>(end - at, 20)));
    }
    ids.push_back(id);
    at = rest;
  }
}

}  // namespace gsa
