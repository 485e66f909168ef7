#include "checkpoint/json.h"

#include <algorithm>
#include <set>
#include <vector>

#include "kernels/error.h"

namespace gsa {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxDepth = 32;
constexpr size_t kMaxPrintable = 80;

// Called by the parser at every step: refuses depth and duplicate keys before they cost memory.
class Guard {
 public:
  explicit Guard(const std::string& name) : name_(name) {}

  bool operator()(int /*depth*/, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
      case Json::parse_event_t::array_start:
        if (keys_.size() == kMaxDepth) {
          throw Error("{}: JSON is nested deeper than {} levels", name_, kMaxDepth);
        }
        keys_.emplace_back();
        break;
      case Json::parse_event_t::object_end:
      case Json::parse_event_t::array_end:
        keys_.pop_back();
        break;
      case Json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!keys_.back().insert(key).second) {
          throw Error("{}: \"{}\" appears twice in one JSON object", name_, printable(key));
        }
        break;
      }
      case Json::parse_event_t::value:
        break;
    }
    return true;
  }

 private:
  const std::string& name_;
  std::vector<std::set<std::string>> keys_;  // of every open object, outermost first
};

std::string describe(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  return printable(value.dump());
}

bool integer_in(const Json& value, int64_t low, int64_t high) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) return false;
  return value.get<int64_t>() >= low && value.get<int64_t>() <= high;
}

}  // namespace

std::string printable(std::string_view text) {
  size_t length = std::min(text.size(), kMaxPrintable);
  // Not in the middle of a UTF-8 character.
  while (length > 0 && length < text.size() && (text[length] & 0xc0) == 0x80) --length;
  std::string line(text.substr(0, length));
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  if (length < text.size()) line += "...";
  return line;
}

Json parse_json(std::string_view text, const std::string& name) {
  try {
    return Json::parse(text.begin(), text.end(), Guard(name));
  } catch (const Json::parse_error& e) {
    const std::string_view before = text.substr(0, e.byte > 0 ? e.byte - 1 : 0);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t column = before.size() - (before.rfind('\n') + 1) + 1;
    throw Error("{}: not valid JSON at line {}, column {}", name, line, column);
  } catch (const Json::exception&) {
    throw Error("{}: not valid JSON: a number is too large", name);
  }
}

JsonObject::JsonObject(const Json& json, std::string name) : json_(json), name_(std::move(name)) {
  if (!json.is_object()) throw Error("{}: expected a JSON object, found {}", name_, describe(json));
}

bool JsonObject::present(std::string_view key) const {
  const auto it = json_.find(key);
  return it != json_.end() && !it->is_null();
}

const Json& JsonObject::at(std::string_view key) const {
  const auto it = json_.find(key);
  if (it == json_.end()) throw Error("{}: field \"{}\" is missing", name_, printable(key));
  return *it;
}

int64_t JsonObject::integer(std::string_view key, int64_t low, int64_t high) const {
  const Json& value = at(key);
  if (!integer_in(value, low, high)) {
    refuse(key, fmt::format("an integer of {} to {}", low, high));
  }
  return value.get<int64_t>();
}

int64_t JsonObject::integer_or(std::string_view key, int64_t low, int64_t high,
                               int64_t fallback) const {
  return absent(key) ? fallback : integer(key, low, high);
}

std::optional<int64_t> JsonObject::optional_integer(std::string_view key, int64_t low,
                                                    int64_t high) const {
  if (!present(key)) return std::nullopt;
  return integer(key, low, high);
}

std::vector<int64_t> JsonObject::integers(std::string_view key, int64_t low, int64_t high) const {
  const Json& value = at(key);
  if (value.is_null()) return {};
  if (!value.is_array()) return {integer(key, low, high)};
  std::vector<int64_t> list;
  for (const Json& element : value) {
    if (!integer_in(element, low, high)) {
      throw Error("{}: field \"{}\" holds {}, expected integers of {} to {}", name_, key,
                  describe(element), low, high);
    }
    list.push_back(element.get<int64_t>());
  }
  return list;
}

double JsonObject::number(std::string_view key, double low, double high) const {
  const Json& value = at(key);
  // Written so that a NaN is refused.
  if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high)) {
    refuse(key, fmt::format("a number of {} to {}", low, high));
  }
  return value.get<double>();
}

double JsonObject::number_or(std::string_view key, double low, double high, double fallback) const {
  return absent(key) ? fallback : number(key, low, high);
}

bool JsonObject::boolean(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_boolean()) refuse(key, "true or false");
  return value.get<bool>();
}

bool JsonObject::boolean_or(std::string_view key, bool fallback) const {
  return absent(key) ? fallback : boolean(key);
}

const std::string& JsonObject::string(std::string_view key) const {
  const Json& value = at(key);
  if (!value.is_string()) refuse(key, "a string");
  return value.get_ref<const std::string&>();
}

void JsonObject::refuse(std::string_view key, std::string_view expected) const {
  throw Error("{}: field \"{}\" is {}, expected {}", name_, printable(key), describe(at(key)),
              expected);
}

}  // namespace gsa
