#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string_view>

#include "engine/request.h"
#include "text/tokenizer.h"

namespace gsa {

// A request from one JSON object in the fields of OpenAI's completions (and vLLM's where that has
// none): prompt (a string, or token ids), max_tokens, min_tokens, temperature, top_k, top_p, min_p,
// typical_p, seed, stop, stop_token_ids, n, logprobs, prompt_logprobs, logit_bias,
// presence_penalty, frequency_penalty, repetition_penalty, ignore_eos, priority, id. What is absent
// has OpenAI's default; without a seed a random one is drawn. null counts as absent. The tokenizer
// may be null: a prompt must then be token ids.
// Throws RequestError naming an unknown, ill-typed or missing field.
Request parse_batch_request(const nlohmann::ordered_json& line, const Tokenizer* tokenizer);

}  // namespace gsa
