#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "engine/request.h"
#include "text/tokenizer.h"

namespace gsa {

// OpenAI's shapes. The tokenizer may be null: pieces are then left out.
nlohmann::ordered_json logprobs_json(const std::vector<SampleResult>& steps,
                                     const Tokenizer* tokenizer);
nlohmann::ordered_json usage_json(const Result& result);

// On one line; bytes that are no UTF-8 become U+FFFD.
std::string dump_json(const nlohmann::ordered_json& json);

}  // namespace gsa
