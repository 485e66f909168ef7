#include "tools/gsa/batch_request.h"

#include <charconv>
#include <functional>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

namespace gsa {
namespace {

using Json = nlohmann::ordered_json;

[[noreturn]] void refuse(const std::string& field, const std::string& expected) {
  throw RequestError(field, fmt::format("{}: expected {}", field, expected));
}

template <typename Integer>
Integer integer(const std::string& field, const Json& value) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    if (std::in_range<Integer>(number)) return static_cast<Integer>(number);
  } else if (value.is_number_integer()) {
    const int64_t number = value.get<int64_t>();
    if (std::in_range<Integer>(number)) return static_cast<Integer>(number);
  }
  refuse(field, "a whole number in range");
}

double number(const std::string& field, const Json& value) {
  if (!value.is_number()) refuse(field, "a number");
  return value.get<double>();
}

bool boolean(const std::string& field, const Json& value) {
  if (!value.is_boolean()) refuse(field, "true or false");
  return value.get<bool>();
}

std::vector<int32_t> token_ids(const std::string& field, const Json& value) {
  if (!value.is_array()) refuse(field, "a list of token ids");
  std::vector<int32_t> ids;
  for (const Json& id : value) ids.push_back(integer<int32_t>(field, id));
  return ids;
}

std::vector<std::string> strings(const std::string& field, const Json& value) {
  if (value.is_string()) return {value.get<std::string>()};
  std::vector<std::string> list;
  if (!value.is_array()) refuse(field, "a string or a list of strings");
  for (const Json& item : value) {
    if (!item.is_string()) refuse(field, "a string or a list of strings");
    list.push_back(item.get<std::string>());
  }
  return list;
}

std::vector<LogitBias> logit_bias(const std::string& field, const Json& value) {
  if (!value.is_object()) refuse(field, "an object of token ids and numbers");
  std::vector<LogitBias> list;
  for (const auto& [key, bias] : value.items()) {
    LogitBias entry{.bias = static_cast<float>(number(field, bias))};
    const char* end = key.data() + key.size();
    const auto [rest, error] = std::from_chars(key.data(), end, entry.token);
    if (error != std::errc() || rest != end) refuse(field, "token ids as keys, found " + key);
    list.push_back(entry);
  }
  return list;
}

using Setter = std::function<void(const std::string& field, const Json& value, Request& request)>;

// One field, one way to read it: the whole vocabulary of a line but id and prompt.
const std::map<std::string, Setter>& setters() {
  const auto real = [](double SamplingParams::*member) {
    return [member](const std::string& field, const Json& value, Request& request) {
      request.sampling.*member = number(field, value);
    };
  };
  static const std::map<std::string, Setter> table = {
      {"temperature", real(&SamplingParams::temperature)},
      {"top_p", real(&SamplingParams::top_p)},
      {"min_p", real(&SamplingParams::min_p)},
      {"typical_p", real(&SamplingParams::typical_p)},
      {"repetition_penalty", real(&SamplingParams::repetition_penalty)},
      {"presence_penalty", real(&SamplingParams::presence_penalty)},
      {"frequency_penalty", real(&SamplingParams::frequency_penalty)},
      {"top_k", [](auto& f, auto& v, Request& r) { r.sampling.top_k = integer<int32_t>(f, v); }},
      {"seed", [](auto& f, auto& v, Request& r) { r.sampling.seed = integer<uint64_t>(f, v); }},
      {"logprobs",
       [](auto& f, auto& v, Request& r) { r.sampling.logprobs = integer<int32_t>(f, v); }},
      {"logit_bias",
       [](auto& f, auto& v, Request& r) { r.sampling.logit_bias = logit_bias(f, v); }},
      {"max_tokens", [](auto& f, auto& v, Request& r) { r.max_tokens = integer<int64_t>(f, v); }},
      {"min_tokens", [](auto& f, auto& v, Request& r) { r.min_tokens = integer<int64_t>(f, v); }},
      {"stop", [](auto& f, auto& v, Request& r) { r.stop = strings(f, v); }},
      {"stop_token_ids", [](auto& f, auto& v, Request& r) { r.stop_token_ids = token_ids(f, v); }},
      {"ignore_eos", [](auto& f, auto& v, Request& r) { r.ignore_eos = boolean(f, v); }},
      {"prompt_logprobs", [](auto& f, auto& v, Request& r) { r.prompt_logprobs = boolean(f, v); }},
      {"n", [](auto& f, auto& v, Request& r) { r.n = integer<int32_t>(f, v); }},
      {"priority", [](auto& f, auto& v, Request& r) { r.priority = integer<int32_t>(f, v); }},
  };
  return table;
}

std::vector<int32_t> prompt_of(const Json& value, const Tokenizer* tokenizer) {
  if (!value.is_string()) return token_ids("prompt", value);
  if (tokenizer == nullptr) refuse("prompt", "token ids, since the model has no tokenizer");
  return tokenizer->encode(value.get<std::string>());
}

}  // namespace

Request parse_batch_request(const Json& line, const Tokenizer* tokenizer) {
  if (!line.is_object()) throw RequestError("", "expected a JSON object");
  Request request;
  request.max_tokens = 16;
  request.sampling.seed = std::random_device()();
  bool has_prompt = false;
  for (const auto& [field, value] : line.items()) {
    if (field == "id" || value.is_null()) continue;
    if (field == "prompt") {
      request.prompt = prompt_of(value, tokenizer);
      has_prompt = true;
      continue;
    }
    const auto setter = setters().find(field);
    if (setter == setters().end()) throw RequestError(field, field + ": unknown field");
    setter->second(field, value, request);
  }
  if (!has_prompt) throw RequestError("prompt", "prompt: missing");
  return request;
}

}  // namespace gsa
