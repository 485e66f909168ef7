#include "engine/request.h"

#include <cmath>

namespace gsa {

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

namespace {

void require(bool good, const char* field, const std::string& expected) {
  if (!good) throw RequestError(field, fmt::format("{}: expected {}", field, expected));
}

void require_tokens(const std::vector<int32_t>& tokens, const char* field,
                    const GsaConfig& config) {
  for (int32_t token : tokens) {
    if (token >= 0 && token < config.vocab_size) continue;
    require(false, field, fmt::format("token ids below {}, found {}", config.vocab_size, token));
  }
}

}  // namespace

void check_request(const Request& request, const GsaConfig& config, int64_t capacity) {
  const SamplingParams& s = request.sampling;
  require(s.temperature >= 0 && std::isfinite(s.temperature), "temperature", "a number >= 0");
  require(s.top_k >= 0, "top_k", "a whole number >= 0 (0: off)");
  require(s.top_p > 0 && s.top_p <= 1, "top_p", "a number in (0, 1]");
  require(s.min_p >= 0 && s.min_p <= 1, "min_p", "a number in [0, 1]");
  require(s.typical_p > 0 && s.typical_p <= 1, "typical_p", "a number in (0, 1]");
  require(s.repetition_penalty > 0 && std::isfinite(s.repetition_penalty), "repetition_penalty",
          "a number > 0");
  require(std::isfinite(s.presence_penalty), "presence_penalty", "a finite number");
  require(std::isfinite(s.frequency_penalty), "frequency_penalty", "a finite number");
  require(s.logprobs >= 0 && s.logprobs <= config.vocab_size, "logprobs",
          fmt::format("a whole number from 0 to {}", config.vocab_size));
  for (const LogitBias& bias : s.logit_bias) {
    require(bias.token >= 0 && bias.token < config.vocab_size && !std::isnan(bias.bias),
            "logit_bias", fmt::format("numbers by token ids below {}", config.vocab_size));
  }
  require(request.repeat_last_n >= -1, "repeat_last_n", "a whole number >= -1 (-1: all)");
  require(request.max_tokens >= 0, "max_tokens", "a whole number >= 0");
  require(request.min_tokens >= 0, "min_tokens", "a whole number >= 0");
  require(request.n >= 1 && request.n <= capacity, "n",
          fmt::format("a whole number from 1 to {}, the states of this engine", capacity));
  require(!request.prompt.empty() || request.from != nullptr, "prompt", "at least one token");
  require_tokens(request.prompt, "prompt", config);
  if (request.from == nullptr) return;
  const Snapshot& from = *request.from;
  require(static_cast<int64_t>(from.state.size() * sizeof(float)) == config.state_bytes() &&
              static_cast<int64_t>(from.logits.size()) == config.vocab_size && !from.tokens.empty(),
          "from", "a snapshot of this model, of at least one token");
  require_tokens(from.tokens, "from", config);
}

}  // namespace gsa
