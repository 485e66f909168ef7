#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace gsa {

// Strict reading of JSON that nobody vouches for. Include this header in .cc files only.

// Text from a file, fit for one line of an error: control characters become '?', and what is longer
// than 80 bytes is cut.
std::string printable(std::string_view text);

// Throws gsa::Error naming `name` and the place where the text is no JSON, where a key appears
// twice in one object, or where it is nested deeper than 32 levels.
nlohmann::json parse_json(std::string_view text, const std::string& name);

// A JSON object with typed access. Every throw names the file and the field, what was found and
// what was expected. Keeps a reference to `json`, which must outlive it. A field that is absent or
// null counts as not there; the functions with a fallback return it for an absent field, and refuse
// null where the fallback is not an optional.
class JsonObject {
 public:
  // Throws unless `json` is an object. `name` stands for the file in errors.
  JsonObject(const nlohmann::json& json, std::string name);

  const std::string& name() const { return name_; }
  bool absent(std::string_view key) const { return json_.find(key) == json_.end(); }
  bool present(std::string_view key) const;  // there and not null

  // The field; throws if absent.
  const nlohmann::json& at(std::string_view key) const;

  int64_t integer(std::string_view key, int64_t low, int64_t high) const;
  int64_t integer_or(std::string_view key, int64_t low, int64_t high, int64_t fallback) const;
  std::optional<int64_t> optional_integer(std::string_view key, int64_t low, int64_t high) const;
  // An integer or a list of integers; empty when null.
  std::vector<int64_t> integers(std::string_view key, int64_t low, int64_t high) const;
  double number(std::string_view key, double low, double high) const;
  double number_or(std::string_view key, double low, double high, double fallback) const;
  bool boolean(std::string_view key) const;
  bool boolean_or(std::string_view key, bool fallback) const;
  const std::string& string(std::string_view key) const;

  // Throws "NAME: field "key" is VALUE, expected EXPECTED".
  [[noreturn]] void refuse(std::string_view key, std::string_view expected) const;

 private:
  const nlohmann::json& json_;
  std::string name_;
};

}  // namespace gsa
