#include <cmath>
#include <map>

#include "checkpoint/json.h"
#include "text/jinja_call.h"

namespace gsa::jinja {
namespace {

using Test = bool (*)(const Value&, Arguments&, Budget&);

int64_t need_integer(const Value& value, const Arguments& arguments) {
  if (!value.integer()) arguments.refuse("{}, expected an integer", value.type());
  return *value.integer();
}

bool divisible(const Value& value, Arguments& arguments, Budget&) {
  const int64_t number = need_integer(value, arguments);
  const int64_t by = need_integer(arguments.need("num"), arguments);
  if (by == 0) arguments.refuse("division by zero");
  return by == -1 || number % by == 0;
}

// Python's str.isupper() and islower(): a letter with case, and every one of this case.
template <char kFirst, char kLast, char kOtherFirst, char kOtherLast>
bool all_of_case(const Value& value, Arguments& arguments, Budget& budget) {
  const Text text = to_text(value);
  budget.steps(arguments.line(), 1 + text.size() / 64);
  if (!text.ascii()) arguments.refuse("is supported for ASCII text only");
  bool some = false;
  for (char c : text.bytes()) {
    if (c >= kOtherFirst && c <= kOtherLast) return false;
    some = some || (c >= kFirst && c <= kLast);
  }
  return some;
}

bool is_sequence(const Value& value) { return value.text() || value.list() || value.dict(); }

bool same(const Value& value, Arguments& arguments, Budget&) {
  const Value other = arguments.need("other");
  return value.type() == other.type() && equal(value, other);
}

template <bool kOr, bool kSwap>
bool ordered(const Value& value, Arguments& arguments, Budget&) {
  const Value other = arguments.need("other");
  if (kOr && equal(value, other)) return true;
  return kSwap ? less(other, value, arguments.line()) : less(value, other, arguments.line());
}

constexpr auto equals = [](const Value& v, Arguments& a, Budget&) {
  return equal(v, a.need("other"));
};
constexpr auto differs = [](const Value& v, Arguments& a, Budget&) {
  return !equal(v, a.need("other"));
};
constexpr auto greater = ordered<false, true>;
constexpr auto greater_or_equal = ordered<true, true>;
constexpr auto smaller = ordered<false, false>;
constexpr auto smaller_or_equal = ordered<true, false>;

const std::map<std::string_view, Test>& tests() {
  static const std::map<std::string_view, Test> all = {
      {"!=", differs},
      {"<", smaller},
      {"<=", smaller_or_equal},
      {"==", equals},
      {">", greater},
      {">=", greater_or_equal},
      {"boolean", [](const Value& v, Arguments&, Budget&) { return v.boolean() != nullptr; }},
      {"callable", [](const Value& v, Arguments&, Budget&) { return v.callable() != nullptr; }},
      {"defined", [](const Value& v, Arguments&, Budget&) { return !v.undefined(); }},
      {"divisibleby", divisible},
      {"eq", equals},
      {"equalto", equals},
      {"even", [](const Value& v, Arguments& a, Budget&) { return need_integer(v, a) % 2 == 0; }},
      {"false", [](const Value& v, Arguments&, Budget&) { return v.boolean() && !*v.boolean(); }},
      {"filter", [](const Value& v, Arguments&,
                    Budget&) { return v.text() && is_filter(v.text()->bytes()); }},
      {"float", [](const Value& v, Arguments&, Budget&) { return v.real() != nullptr; }},
      {"ge", greater_or_equal},
      {"greaterthan", greater},
      {"gt", greater},
      {"in", [](const Value& v, Arguments& a,
                Budget& budget) { return contains(a.need("seq"), v, a.line(), budget); }},
      {"integer", [](const Value& v, Arguments&, Budget&) { return v.integer() && !v.boolean(); }},
      {"iterable",
       [](const Value& v, Arguments&, Budget&) { return is_sequence(v) || v.undefined(); }},
      {"le", smaller_or_equal},
      {"lessthan", smaller},
      {"lower", all_of_case<'a', 'z', 'A', 'Z'>},
      {"lt", smaller},
      {"mapping", [](const Value& v, Arguments&, Budget&) { return v.dict() != nullptr; }},
      {"ne", differs},
      {"none", [](const Value& v, Arguments&, Budget&) { return v.none(); }},
      {"number", [](const Value& v, Arguments&, Budget&) { return v.number().has_value(); }},
      {"odd", [](const Value& v, Arguments& a, Budget&) { return need_integer(v, a) % 2 != 0; }},
      {"sameas", same},
      {"sequence",
       [](const Value& v, Arguments&, Budget&) { return is_sequence(v) || v.undefined(); }},
      {"string", [](const Value& v, Arguments&, Budget&) { return v.text() != nullptr; }},
      {"test",
       [](const Value& v, Arguments&, Budget&) { return v.text() && is_test(v.text()->bytes()); }},
      {"true", [](const Value& v, Arguments&, Budget&) { return v.boolean() && *v.boolean(); }},
      {"undefined", [](const Value& v, Arguments&, Budget&) { return v.undefined(); }},
      {"upper", all_of_case<'A', 'Z', 'a', 'z'>},
  };
  return all;
}

}  // namespace

bool apply_test(const std::string& name, const Value& value, Arguments& arguments, Budget& budget) {
  const auto test = tests().find(name);
  if (test == tests().end()) {
    fail(arguments.line(), "the test \"{}\" is not supported", printable(name));
  }
  budget.steps(arguments.line());
  const bool result = test->second(value, arguments, budget);
  arguments.done();
  return result;
}

bool is_test(std::string_view name) { return tests().count(name) > 0; }

}  // namespace gsa::jinja
