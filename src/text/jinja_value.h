#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja_text.h"

namespace gsa::jinja {

struct Statement;
struct List;
struct Dict;
struct Namespace;
struct Callable;

// What a variable was called that is not there, for the error of whoever uses it.
struct Undefined {
  std::string name;
};
struct None {};

// A value of a template. Lists and dictionaries are immutable; only a namespace changes.
class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(Undefined value) : data_(std::move(value)) {}
  Value(None) : data_(None{}) {}
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(Text text) : data_(std::make_shared<const Text>(std::move(text))) {}
  Value(std::shared_ptr<const List> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Dict> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<Namespace> value) : data_(std::move(value)) {}
  Value(std::shared_ptr<const Callable> value) : data_(std::move(value)) {}

  static Value text(std::string_view bytes) { return Text(bytes); }

  bool undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool none() const { return std::holds_alternative<None>(data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const double* real() const { return std::get_if<double>(&data_); }
  const Text* text() const { return pointee<const Text>(); }
  const List* list() const { return pointee<const List>(); }
  const Dict* dict() const { return pointee<const Dict>(); }
  Namespace* name_space() const { return pointee<Namespace>(); }
  const Callable* callable() const { return pointee<const Callable>(); }

  // Of an integer, and of a boolean as Python counts.
  std::optional<int64_t> integer() const;
  // Of an integer, a boolean or a real number.
  std::optional<double> number() const;
  // REQUIRES: undefined().
  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }

  // As Python: empty, zero, none and undefined are false.
  bool truth() const;
  // How many lists and dictionaries lie within each other.
  int depth() const;
  // "a string", for errors.
  std::string type() const;

 private:
  template <typename T>
  T* pointee() const {
    const auto* held = std::get_if<std::shared_ptr<T>>(&data_);
    return held == nullptr ? nullptr : held->get();
  }

  std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const Text>,
               std::shared_ptr<const List>, std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
               std::shared_ptr<const Callable>>
      data_;
};

inline constexpr int kMaxValueDepth = 64;

struct List {
  std::vector<Value> elements;
  int depth;
  bool tuple = false;  // for how it prints
};

// In the order of insertion; keys are strings.
struct Dict {
  std::vector<std::pair<Text, Value>> entries;
  int depth;

  const Value* get(std::string_view key) const;
};

struct Namespace {
  std::map<std::string, Value, std::less<>> members;
};

// A function of the environment, a macro of the template or a method of a value.
struct Callable {
  std::string name;
  const Statement* macro = nullptr;
  std::optional<Value> self = std::nullopt;
};

// Throw gsa::Error past kMaxValueDepth.
Value make_list(std::vector<Value> elements, bool tuple = false);
Value make_dict(std::vector<std::pair<Text, Value>> entries);

// Python's ==.
bool equal(const Value& a, const Value& b);

// As Python's str() and repr() write it; undefined is empty.
Text to_text(const Value& value);
Text to_repr(const Value& value);

// As json.dumps(value, ensure_ascii=False, ...) writes it; `indent` < 0: on one line. False where
// the value has no JSON form.
struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false;
  int64_t indent = -1;
  std::string item_separator, key_separator;
};
bool to_json(const Value& value, const JsonStyle& style, Text& out);

}  // namespace gsa::jinja
