#include "engine/task.h"

#include <algorithm>

namespace gsa {
namespace {

SamplingParams params_of(const Request& request, int32_t index) {
  SamplingParams params = request.sampling;
  params.seed += static_cast<uint64_t>(index);
  return params;
}

// What is not drawn before min_tokens.
std::vector<int32_t> banned_tokens(const LoadedModel& model, const Request& request) {
  std::vector<int32_t> banned = request.stop_token_ids;
  const std::vector<int64_t>& eos = model.config.eos_token_ids;
  if (!request.ignore_eos) banned.insert(banned.end(), eos.begin(), eos.end());
  return banned;
}

}  // namespace

Sequence::Sequence(const LoadedModel& model, const Request& request,
                   std::span<const int32_t> context, int32_t index)
    : model_(model),
      request_(request),
      index_(index),
      sampler_(params_of(request, index), context, request.repeat_last_n,
               banned_tokens(model, request), request.min_tokens),
      stops_(request.stop) {
  if (!model.tokenizer) return;
  const Tokenizer& tokenizer = *model.tokenizer;
  const bool continues = std::any_of(context.begin(), context.end(), [&](int32_t token) {
    return !tokenizer.bytes(token).empty();
  });
  decoder_.emplace(tokenizer, continues);
}

bool Sequence::is_stop(int32_t token) const {
  const std::vector<int64_t>& eos = model_.config.eos_token_ids;
  const std::vector<int32_t>& stops = request_.stop_token_ids;
  return (!request_.ignore_eos && std::find(eos.begin(), eos.end(), token) != eos.end()) ||
         std::find(stops.begin(), stops.end(), token) != stops.end();
}

std::string Sequence::accept(SampleResult result) {
  const int32_t token = result.token;
  sampler_.accept(token);
  completion.tokens.push_back(token);
  if (request_.sampling.logprobs > 0) completion.logprobs.push_back(std::move(result));
  if (is_stop(token)) return end(FinishReason::kStop);
  std::string shown = decoder_ ? stops_.push(decoder_->push(token)) : std::string();
  completion.text += shown;
  if (stops_.stopped()) {
    end(FinishReason::kStop);
  } else if (static_cast<int64_t>(completion.tokens.size()) >= request_.max_tokens) {
    shown += end(FinishReason::kLength);
  }
  return shown;
}

std::string Sequence::end(FinishReason reason) {
  if (ended_) return {};
  ended_ = true;
  completion.finish_reason = reason;
  if (!decoder_) return {};
  std::string rest = stops_.push(decoder_->finish());
  rest += stops_.finish();
  completion.text += rest;
  return rest;
}

bool Task::completed() const {
  return !sequences.empty() && std::all_of(sequences.begin(), sequences.end(),
                                           [](const auto& s) { return s->ended() && !s->closing; });
}

bool Task::end_for_snapshot(bool late) {
  if (!request.keep_snapshot || sequences.empty()) return false;
  for (const auto& sequence : sequences) {
    if (sequence->ended()) continue;
    sequence->end(late ? FinishReason::kDeadline : FinishReason::kCancelled);
    sequence->closing = true;
  }
  return true;
}

}  // namespace gsa
