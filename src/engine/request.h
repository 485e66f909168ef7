#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/config.h"
#include "kernels/error.h"
#include "kernels/sampling.h"
#include "model/snapshot.h"

namespace gsa {

// What a user asks for. Token ids are used as they are: text is encoded by the caller
// (Engine::tokenizer()).
struct Request {
  std::vector<int32_t> prompt{};
  // The state to go on from; the prompt follows its tokens. With an empty prompt the text goes on
  // where the snapshot stopped. Such a request neither reads nor fills the prefix cache, since what
  // a snapshot holds is its owner's word.
  std::shared_ptr<const Snapshot> from{};

  SamplingParams sampling{};
  int64_t repeat_last_n = -1;  // tokens that the repetition penalty looks back at; -1: all
  int64_t max_tokens = 128;    // of each completion
  int64_t min_tokens = 0;      // EOS and stop tokens are not drawn before
  std::vector<std::string> stop{};
  std::vector<int32_t> stop_token_ids{};
  bool ignore_eos = false;
  int32_t n = 1;  // completions; the k-th draws with seed + k

  int32_t priority = 0;  // higher goes first
  std::optional<std::chrono::steady_clock::time_point> deadline{};

  bool prompt_logprobs = false;  // of every prompt token but the first
  // Completion::snapshot is filled, for completions that end by themselves (kStop, kLength).
  bool keep_snapshot = false;
  // The prefix cache keeps the end of the answer too: for a conversation, whose next prompt begins
  // with all that was said. Costs one more step, as keep_snapshot does.
  bool cache_turn = false;
};

// A request that could never run; `param` is the field to blame, by its name in OpenAI's API.
class RequestError : public Error {
 public:
  RequestError(const std::string& param, const std::string& message)
      : Error(message), param_(param) {}
  const std::string& param() const { return param_; }

 private:
  std::string param_;
};

// Throws RequestError for values out of range, for this model and an engine of `capacity` states.
void check_request(const Request& request, const GsaConfig& config, int64_t capacity);

enum class FinishReason : uint8_t { kStop, kLength, kCancelled, kDeadline, kError };

// "stop", "length", "cancelled", "deadline", "error"
std::string_view finish_reason_name(FinishReason reason);

struct Completion {
  std::vector<int32_t> tokens;  // as drawn, the stop token included
  std::string text;             // without stop strings and control tokens
  FinishReason finish_reason = FinishReason::kError;
  std::vector<SampleResult> logprobs;        // one per token, if asked for
  std::shared_ptr<const Snapshot> snapshot;  // that has taken in all tokens
};

struct Result {
  std::vector<Completion> completions;        // n of them, in order
  std::vector<SampleResult> prompt_logprobs;  // of prompt tokens 1, 2, ...
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompt, taken from the prefix cache
  std::string error;          // set when the finish reasons are kError

  std::chrono::steady_clock::time_point submitted, started, first_token, finished;
};

// A piece of a completion as it comes. `text` may be empty. The pieces add up to Completion::text,
// but for a request that is cancelled or late: what was held back then, because it could have
// become a stop string, is in the result alone.
struct Delta {
  int32_t completion = 0;
  int32_t token = 0;
  std::string_view text;
};

// Called on the engine's thread; must not block, and must not throw.
using DeltaCallback = std::function<void(const Delta&)>;
using ResultCallback = std::function<void(Result&&)>;

}  // namespace gsa
