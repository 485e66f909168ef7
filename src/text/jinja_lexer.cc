#include "text/jinja_lexer.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "checkpoint/json.h"
#include "text/jinja_text.h"

namespace gsa::jinja {
namespace {

constexpr std::array<std::string_view, 26> kOperators = {
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
    "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_begin(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_name(char c) { return is_name_begin(c) || is_digit(c); }

// Line ends become "\n", and one at the very end goes, as Jinja does it.
std::string normalize_lines(std::string_view source) {
  std::string text;
  text.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    text += source[i] == '\r' ? '\n' : source[i];
  }
  if (text.ends_with('\n')) text.pop_back();
  return text;
}

void append_utf8(uint32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  constexpr unsigned char kLead[] = {0, 0xC0, 0xE0, 0xF0};
  out += static_cast<char>(kLead[more] | code >> (6 * more));
  for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      const size_t begin = next_tag();
      data(begin);
      if (begin == source_.size()) break;
      tag();
    }
    push(Token::kEnd, "");
    return std::move(tokens_);
  }

 private:
  bool here(std::string_view text) const { return source_.compare(at_, text.size(), text) == 0; }

  void push(Token::Kind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), line_});
  }

  void advance(size_t count) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<long>(at_),
                                         source_.begin() + static_cast<long>(at_ + count), '\n'));
    at_ += count;
  }

  // Remembers, as Jinja does, whether what was just consumed ended a line.
  void consumed_to_line_end() { line_starting_ = at_ > 0 && source_[at_ - 1] == '\n'; }

  size_t next_tag() const {
    for (size_t at = at_; (at = source_.find('{', at)) != source_.npos; ++at) {
      const char kind = at + 1 < source_.size() ? source_[at + 1] : '\0';
      if (kind == '{' || kind == '%' || kind == '#') return at;
    }
    return source_.size();
  }

  char sign_at(size_t position) const {
    const char c = position < source_.size() ? source_[position] : '\0';
    return c == '-' || c == '+' ? c : '\0';
  }

  // The text up to `end`, stripped on its right as the tag there asks.
  void data(size_t end) {
    std::string_view text = std::string_view(source_).substr(at_, end - at_);
    if (end < source_.size()) {
      const char sign = sign_at(end + 2);
      const size_t line = text.rfind('\n') + 1;  // 0 where there is no line end
      if (sign == '-') {
        text = text.substr(0, strip_end(text));
      } else if (sign != '+' && source_[end + 1] != '{' && (line > 0 || line_starting_) &&
                 strip_end(text.substr(line)) == 0) {
        text = text.substr(0, line);
      }
    }
    if (!text.empty()) push(Token::kData, std::string(text));
    advance(end - at_);
  }

  static size_t strip_end(std::string_view text) {
    return Text(text).strip(std::nullopt, false, true).size();
  }

  void tag() {
    const char kind = source_[at_ + 1];
    const int line = line_;
    advance(2);
    if (sign_at(at_) != '\0') advance(1);
    if (kind == '#') {
      const size_t end = source_.find("#}", at_);
      if (end == source_.npos) fail(line, "the comment {{# has no #}}");
      const char sign = end > at_ ? sign_at(end - 1) : '\0';
      advance(end + 2 - at_);
      after_tag(sign, /*trims_line=*/true);
      return;
    }
    const bool block = kind == '%';
    push(block ? Token::kBlockBegin : Token::kVariableBegin, "");
    if (!expression(block ? "%}" : "}}")) {
      fail(line, "{} has no {}", block ? "{%" : "{{", block ? "%}" : "}}");
    }
  }

  // White space after a tag: all of it after -%}, one line end after %} and #}.
  void after_tag(char sign, bool trims_line) {
    if (sign == '-') {
      const std::string_view rest = std::string_view(source_).substr(at_);
      advance(rest.size() - Text(rest).strip(std::nullopt, true, false).size());
    } else if (sign != '+' && trims_line && here("\n")) {
      advance(1);
    }
    consumed_to_line_end();
  }

  // Tokens up to and with `end`; false where it is not there.
  bool expression(std::string_view end) {
    const bool block = end == "%}";
    std::string open;  // the brackets that must close, innermost last
    while (at_ < source_.size()) {
      const char c = source_[at_];
      const char sign = sign_at(at_);
      const bool signed_end =
          sign != '\0' && (block || sign == '-') && source_.compare(at_ + 1, 2, end) == 0;
      if (open.empty() && (signed_end || here(end))) {
        push(block ? Token::kBlockEnd : Token::kVariableEnd, "");
        advance(signed_end ? 3 : 2);
        after_tag(signed_end ? sign : '\0', block);
        return true;
      }
      if (c == ' ' || (c >= '\t' && c <= '\r')) {
        advance(1);
      } else if (is_name_begin(c)) {
        size_t stop = at_;
        while (stop < source_.size() && is_name(source_[stop])) ++stop;
        push(Token::kName, source_.substr(at_, stop - at_));
        advance(stop - at_);
      } else if (is_digit(c)) {
        number();
      } else if (c == '"' || c == '\'') {
        string(c);
      } else {
        operator_token(open);
      }
    }
    return false;
  }

  void number() {
    size_t end = at_;
    bool fraction = false;
    const auto digits = [&] {
      while (end < source_.size() && (is_digit(source_[end]) || source_[end] == '_')) ++end;
    };
    const auto digit_at = [&](size_t i) { return i < source_.size() && is_digit(source_[i]); };
    digits();
    if (end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      fraction = true;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t exponent = end + 1 + (sign_at(end + 1) != '\0');
      if (digit_at(exponent)) {
        fraction = true;
        end = exponent;
        digits();
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    push(fraction ? Token::kFloat : Token::kInteger, std::move(text));
    advance(end - at_);
  }

  void operator_token(std::string& open) {
    for (std::string_view op : kOperators) {
      if (!here(op)) continue;
      constexpr std::string_view kOpening = "([{", kClosing = ")]}";
      if (const size_t i = kOpening.find(op); i != kOpening.npos) open += kClosing[i];
      if (kClosing.find(op) != kClosing.npos) {
        if (open.empty()) fail(line_, "\"{}\" closes nothing", op);
        if (open.back() != op[0]) {
          fail(line_, "unexpected \"{}\", expected \"{}\"", op, open.back());
        }
        open.pop_back();
      }
      push(Token::kOperator, std::string(op));
      advance(op.size());
      return;
    }
    const size_t length = character_bytes(source_, at_);
    fail(line_, "unexpected \"{}\"", printable(source_.substr(at_, length)));
  }

  void string(char quote) {
    const int line = line_;
    std::string value;
    size_t at = at_ + 1;
    while (at < source_.size() && source_[at] != quote) {
      if (source_[at] != '\\') {
        value += source_[at++];
      } else {
        escape(at, value);
      }
    }
    if (at >= source_.size()) fail(line, "a string has no closing {}", quote);
    push(Token::kString, std::move(value));
    advance(at + 1 - at_);
  }

  // Of the escape at `at`, as Python's "unicode-escape" reads it. An unknown one stays as it is.
  void escape(size_t& at, std::string& value) {
    if (at + 1 >= source_.size()) {
      ++at;
      return;
    }
    const char c = source_[at + 1];
    constexpr std::string_view kNames = "abfnrtv\\'\"", kValues = "\a\b\f\n\r\t\v\\'\"";
    const size_t simple = kNames.find(c);
    const size_t hex = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    if (simple != kNames.npos) {
      value += kValues[simple];
      at += 2;
    } else if (c == '\n') {
      at += 2;
    } else if (hex > 0) {
      code_point(at + 2, hex, 16, value);
      at += 2 + hex;
    } else if (c >= '0' && c <= '7') {
      size_t count = 1;
      while (count < 3 && at + 1 + count < source_.size() && source_[at + 1 + count] >= '0' &&
             source_[at + 1 + count] <= '7') {
        ++count;
      }
      code_point(at + 1, count, 8, value);
      at += 1 + count;
    } else if (c == 'N') {
      fail(line_, "the escape \\N in a string is not supported");
    } else {
      value += '\\';
      ++at;
    }
  }

  void code_point(size_t at, size_t count, uint32_t base, std::string& value) {
    uint32_t code = 0;
    bool valid = at + count <= source_.size();
    for (size_t i = at; valid && i < at + count; ++i) {
      const char c = source_[i];
      const uint32_t digit = is_digit(c)            ? static_cast<uint32_t>(c - '0')
                             : c >= 'a' && c <= 'f' ? static_cast<uint32_t>(c - 'a' + 10)
                             : c >= 'A' && c <= 'F' ? static_cast<uint32_t>(c - 'A' + 10)
                                                    : 99;
      valid = digit < base && code <= 0x10FFFF;
      code = code * base + digit;
    }
    if (!valid || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
      fail(line_, "an escape in a string is no character");
    }
    append_utf8(code, value);
  }

  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

std::string Token::describe() const {
  switch (kind) {
    case kData:
      return "text";
    case kBlockBegin:
      return "\"{%\"";
    case kBlockEnd:
      return "\"%}\"";
    case kVariableBegin:
      return "\"{{\"";
    case kVariableEnd:
      return "\"}}\"";
    case kString:
      return fmt::format("the string \"{}\"", printable(text));
    case kEnd:
      return "the end";
    case kName:
    case kInteger:
    case kFloat:
    case kOperator:
      break;
  }
  return fmt::format("\"{}\"", printable(text));
}

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(normalize_lines(source)).run();
}

}  // namespace gsa::jinja
