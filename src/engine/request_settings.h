#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "engine/request.h"

namespace gsa {

// What shapes the text of a request, each as a name and a value in words: what a user sets in a
// chat, and what a saved conversation remembers. The names are those of the flags.
struct RequestSetting {
  std::string_view name;
  std::string_view alias;  // the name in OpenAI's API
  std::string_view help;
  std::string (*get)(const Request&);
  void (*set)(Request&, std::string_view value);  // throws gsa::Error for what is no such value
};

std::span<const RequestSetting> request_settings();

// By name or alias, '-' and '_' being the same. Throws gsa::Error naming those there are.
const RequestSetting& find_setting(std::string_view name);

// Changes one setting. Throws gsa::Error for an unknown name, and for a value that is no such value
// or out of range; the request is then as before.
void change_setting(const GsaConfig& config, std::string_view name, std::string_view value,
                    Request& request);

// All of them, by name.
std::map<std::string, std::string> settings_of(const Request& request);

}  // namespace gsa
