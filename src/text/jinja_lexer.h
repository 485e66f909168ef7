#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/error.h"

namespace gsa::jinja {

// Throws "chat template, line N: ...".
template <typename... Args>
[[noreturn]] void fail(int line, fmt::format_string<Args...> format, Args&&... args) {
  throw Error("chat template, line {}: {}", line, fmt::format(format, std::forward<Args>(args)...));
}

struct Token {
  enum Kind {
    kData,           // text outside of {{ }} and {% %}
    kBlockBegin,     // {%
    kBlockEnd,       // %}
    kVariableBegin,  // {{
    kVariableEnd,    // }}
    kName,
    kString,  // its value, escapes resolved
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  } kind;
  std::string text;
  int line;

  bool is(Kind other, std::string_view value) const { return kind == other && text == value; }
  bool op(std::string_view value) const { return is(kOperator, value); }
  bool name(std::string_view value) const { return is(kName, value); }

  // For errors: `"for"`, or "the end".
  std::string describe() const;
};

// The tokens of a template, kEnd last, its white space gone where Jinja's trim_blocks,
// lstrip_blocks and the signs of {%- -%} say so. Throws gsa::Error.
std::vector<Token> tokenize(std::string_view source);

}  // namespace gsa::jinja
