#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_lexer.h"
#include "text/jinja_value.h"

namespace gsa::jinja {

// What a template may use up; an honest one stays far below. Every charge that goes beyond throws
// gsa::Error.
class Budget {
 public:
  // For a conversation of so many messages and bytes.
  Budget(size_t messages, size_t bytes)
      : steps_(1'000'000 + 20'000 * static_cast<int64_t>(messages)),
        bytes_(static_cast<int64_t>((size_t{16} << 20) + 64 * bytes)) {}

  // Evaluations, and elements and bytes looked at.
  void steps(int line, size_t count = 1) {
    steps_ -= static_cast<int64_t>(count);
    if (steps_ < 0) fail(line, "the template takes too many steps");
  }

  // Text made; to be called before it is made.
  void bytes(int line, size_t count) {
    if (static_cast<int64_t>(count) > bytes_) fail(line, "the template makes too much text");
    bytes_ -= static_cast<int64_t>(count);
  }

 private:
  int64_t steps_, bytes_;
};

// The arguments of a call, filter or test, taken one by one; done() refuses what is left over.
class Arguments {
 public:
  // `construct` stands for the call in errors: `filter "join"`.
  Arguments(int line, std::string construct, std::vector<Value> positional,
            std::vector<std::pair<std::string, Value>> named)
      : line_(line),
        construct_(std::move(construct)),
        positional_(std::move(positional)),
        named_(std::move(named)) {}

  int line() const { return line_; }
  const std::string& construct() const { return construct_; }

  // The next argument by position, or the one called `name`.
  std::optional<Value> take(std::string_view name);
  // The same where there must be one.
  Value need(std::string_view name);
  // The same as a type; throws where it has another. none counts as absent.
  std::optional<Text> take_text(std::string_view name);
  std::optional<int64_t> take_integer(std::string_view name);
  bool take_flag(std::string_view name, bool absent);
  Text need_text(std::string_view name);

  // By name only.
  std::optional<Value> take_named(std::string_view name);

  // Every argument that is left.
  std::vector<Value> rest();
  std::vector<std::pair<std::string, Value>> rest_named() { return std::exchange(named_, {}); }
  void done() const;

  template <typename... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(line_, "{}: {}", construct_, fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  int line_;
  std::string construct_;
  std::vector<Value> positional_;
  std::vector<std::pair<std::string, Value>> named_;
  size_t next_ = 0;
};

// The elements that a loop over the value sees: of a list, characters of text, keys of a
// dictionary, none of undefined. Throws where it has no elements.
std::vector<Value> iterate(const Value& value, int line, Budget& budget);

// Attribute or key of a value; undefined where there is none. Throws for undefined itself.
Value get_item(const Value& object, const Value& key, int line, Budget& budget);
Value get_attribute(const Value& object, const std::string& name, int line);

// Python's `needle in haystack`, and a < b of numbers and of strings.
bool contains(const Value& haystack, const Value& needle, int line, Budget& budget);
bool less(const Value& a, const Value& b, int line);

// Throws gsa::Error naming line and construct; also where there is no such filter, test or method.
Value apply_filter(const std::string& name, const Value& value, Arguments& arguments,
                   Budget& budget);
bool apply_test(const std::string& name, const Value& value, Arguments& arguments, Budget& budget);
Value call_method(const Value& self, const std::string& name, Arguments& arguments, Budget& budget);
bool is_filter(std::string_view name);
bool is_test(std::string_view name);
bool has_method(const Value& self, std::string_view name);

// With the letters of ASCII changed; throws where the text has others.
Value with_case(const Text& text, Text::Case what, const Arguments& arguments, Budget& budget);

}  // namespace gsa::jinja
