#include "engine/request_settings.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "checkpoint/json.h"
#include "kernels/error.h"

namespace gsa {
namespace {

template <typename T>
T parse_number(std::string_view text) {
  T value{};
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || rest != end) {
    throw Error("expected {}, found \"{}\"", std::is_integral_v<T> ? "a whole number" : "a number",
                printable(text));
  }
  return value;
}

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  for (size_t at = 0; (at = text.find_first_not_of(" ,", at)) != text.npos;) {
    const size_t end = std::min(text.find_first_of(" ,", at), text.size());
    words.push_back(text.substr(at, end - at));
    at = end;
  }
  return words;
}

// Of a number that stands in the request itself or in its sampling parameters.
template <auto member>
std::string get_number(const Request& request) {
  if constexpr (requires { request.*member; }) {
    return fmt::format("{}", request.*member);
  } else {
    return fmt::format("{}", request.sampling.*member);
  }
}

template <auto member>
void set_number(Request& request, std::string_view text) {
  if constexpr (requires { request.*member; }) {
    request.*member = parse_number<std::decay_t<decltype(request.*member)>>(text);
  } else {
    using T = std::decay_t<decltype(request.sampling.*member)>;
    request.sampling.*member = parse_number<T>(text);
  }
}

template <auto member>
constexpr RequestSetting number(std::string_view name, std::string_view alias,
                                std::string_view help) {
  return {name, alias, help, get_number<member>, set_number<member>};
}

std::string get_ignore_eos(const Request& request) { return request.ignore_eos ? "on" : "off"; }

void set_ignore_eos(Request& request, std::string_view text) {
  if (text != "on" && text != "off") {
    throw Error("expected on or off, found \"{}\"", printable(text));
  }
  request.ignore_eos = text == "on";
}

std::string get_stop(const Request& request) {
  return nlohmann::json(request.stop)
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// A JSON list, or one string as it stands.
void set_stop(Request& request, std::string_view text) {
  std::vector<std::string> stop;
  if (text.starts_with('[')) {
    const nlohmann::json list = parse_json(text, "the list");
    for (const nlohmann::json& item : list) {
      if (!item.is_string()) throw Error("expected a list of strings, found {}", printable(text));
      stop.push_back(item.get<std::string>());
    }
  } else if (!text.empty()) {
    stop.emplace_back(text);
  }
  request.stop = std::move(stop);
}

std::string get_stop_tokens(const Request& request) {
  return fmt::format("{}", fmt::join(request.stop_token_ids, " "));
}

void set_stop_tokens(Request& request, std::string_view text) {
  std::vector<int32_t> ids;
  for (std::string_view word : words_of(text)) ids.push_back(parse_number<int32_t>(word));
  request.stop_token_ids = std::move(ids);
}

std::string get_logit_bias(const Request& request) {
  std::string text;
  for (const LogitBias& b : request.sampling.logit_bias) {
    text += fmt::format("{}{}{:+}", text.empty() ? "" : " ", b.token, b.bias);
  }
  return text;
}

void set_logit_bias(Request& request, std::string_view text) {
  std::vector<LogitBias> biases;
  for (std::string_view word : words_of(text)) {
    const size_t sign = word.find_first_of("+-");
    if (sign == word.npos || sign == 0) {
      throw Error("expected ID+BIAS or ID-BIAS, as in 29+1.5, found \"{}\"", printable(word));
    }
    const std::string_view bias = word.substr(word[sign] == '+' ? sign + 1 : sign);
    biases.push_back({parse_number<int32_t>(word.substr(0, sign)), parse_number<float>(bias)});
  }
  request.sampling.logit_bias = std::move(biases);
}

using P = SamplingParams;
using R = Request;

constexpr RequestSetting kSettings[] = {
    number<&P::temperature>("temp", "temperature", "0: always the likeliest token"),
    number<&P::top_k>("top-k", "top_k", "only the K likeliest tokens; 0: off"),
    number<&P::top_p>("top-p", "top_p", "only the likeliest that hold this probability; 1: off"),
    number<&P::min_p>("min-p", "min_p", "only those this likely, relative to the likeliest"),
    number<&P::typical_p>("typical", "typical_p", "locally typical sampling; 1: off"),
    number<&P::repetition_penalty>("repeat-penalty", "repetition_penalty", "1: off"),
    number<&R::repeat_last_n>("repeat-last-n", "repeat_last_n", "tokens it looks back at; -1: all"),
    number<&P::presence_penalty>("presence-penalty", "presence_penalty", "0: off"),
    number<&P::frequency_penalty>("frequency-penalty", "frequency_penalty", "0: off"),
    number<&P::seed>("seed", "seed", "of the random numbers"),
    number<&R::max_tokens>("max-tokens", "max_tokens", "of an answer"),
    number<&R::min_tokens>("min-tokens", "min_tokens", "no end before"),
    {"ignore-eos", "ignore_eos", "on: go on after the end of the text", get_ignore_eos,
     set_ignore_eos},
    {"stop", "stop", "text that ends an answer, or a JSON list of such; empty: none", get_stop,
     set_stop},
    {"stop-token", "stop_token_ids", "token ids that end an answer", get_stop_tokens,
     set_stop_tokens},
    {"logit-bias", "logit_bias", "ID+BIAS or ID-BIAS, several with blanks between", get_logit_bias,
     set_logit_bias},
};

bool same_name(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) {
    return x == y || ((x == '-' || x == '_') && (y == '-' || y == '_'));
  });
}

}  // namespace

std::span<const RequestSetting> request_settings() { return kSettings; }

const RequestSetting& find_setting(std::string_view name) {
  std::string known;
  for (const RequestSetting& setting : kSettings) {
    if (same_name(name, setting.name) || same_name(name, setting.alias)) return setting;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", setting.name);
  }
  throw Error("{}: no such setting; there are {}", printable(name), known);
}

void change_setting(const GsaConfig& config, std::string_view name, std::string_view value,
                    Request& request) {
  const RequestSetting& setting = find_setting(name);
  Request changed = request;
  try {
    setting.set(changed, value);
  } catch (const Error& error) {
    throw Error("{}: {}", setting.name, error.what());
  }
  Request probe = changed;
  probe.prompt = {0};
  check_request(probe, config, probe.n);
  request = std::move(changed);
}

std::map<std::string, std::string> settings_of(const Request& request) {
  std::map<std::string, std::string> all;
  for (const RequestSetting& setting : kSettings) {
    all.emplace(setting.name, setting.get(request));
  }
  return all;
}

}  // namespace gsa
