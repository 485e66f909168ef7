#include "tools/gsa/result_json.h"

#include <nlohmann/json.hpp>

namespace gsa {

nlohmann::ordered_json logprobs_json(const std::vector<SampleResult>& steps,
                                     const Tokenizer* tokenizer) {
  const auto entry = [&](int32_t token, float logprob) {
    nlohmann::ordered_json json = {{"id", token}};
    if (tokenizer != nullptr) json["token"] = tokenizer->piece(token);
    json["logprob"] = logprob;
    return json;
  };
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const SampleResult& step : steps) {
    nlohmann::ordered_json json = entry(step.token, step.logprob);
    json["top_logprobs"] = nlohmann::ordered_json::array();
    for (const TokenLogprob& top : step.top) {
      json["top_logprobs"].push_back(entry(top.token, top.logprob));
    }
    list.push_back(std::move(json));
  }
  return list;
}

nlohmann::ordered_json usage_json(const Result& result) {
  int64_t completion_tokens = 0;
  for (const Completion& c : result.completions) {
    completion_tokens += static_cast<int64_t>(c.tokens.size());
  }
  return {{"prompt_tokens", result.prompt_tokens}, {"completion_tokens", completion_tokens}};
}

std::string dump_json(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace gsa
