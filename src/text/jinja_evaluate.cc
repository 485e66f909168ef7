#include <algorithm>
#include <cmath>
#include <ctime>

#include "checkpoint/json.h"
#include "text/jinja_interpreter.h"

namespace gsa::jinja {
namespace {

constexpr size_t kMaxMessage = 400;

[[noreturn]] void fail_undefined(const Value& value, int line) {
  fail(line, "\"{}\" is undefined", printable(value.undefined_name()));
}

// The message of raise_exception, on one line.
std::string one_line(const std::string& text) {
  std::string line = text.substr(0, kMaxMessage);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return line;
}

std::string format_time(const std::string& format, std::time_t time, const Arguments& arguments) {
  if (format.size() > 1000 || format.find('\0') != format.npos) {
    arguments.refuse("the format is no format");
  }
  std::tm local{};
  localtime_r(&time, &local);
  // Month and day names are English whatever the locale of the program.
  static const locale_t c_locale = newlocale(LC_ALL_MASK, "C", nullptr);
  std::string text(64 * (format.size() + 1), '\0');
  text.resize(strftime_l(text.data(), text.size(), format.c_str(), &local, c_locale));
  return text;
}

// Python's // and %: towards minus infinity, the sign of the divisor.
int64_t floor_divide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

}  // namespace

Value Interpreter::evaluate(const Expression& expression) {
  const Level level(*this, expression.line);
  switch (expression.kind) {
    case Expression::kConstant:
      return expression.value;
    case Expression::kName:
      return lookup(expression);
    case Expression::kCaptured:
      return captured_;
    case Expression::kList: {
      std::vector<Value> elements;
      for (const Expression& child : expression.children) elements.push_back(evaluate(child));
      return make_list(std::move(elements), expression.name == "tuple");
    }
    case Expression::kDict:
      return dict(expression);
    case Expression::kAttribute:
      return get_attribute(evaluate(expression.children[0]), expression.name, expression.line);
    case Expression::kItem: {
      const Value object = evaluate(expression.children[0]);
      return get_item(object, evaluate(expression.children[1]), expression.line, budget_);
    }
    case Expression::kSlice:
      return slice(expression);
    case Expression::kCall:
      return call(expression);
    case Expression::kFilter: {
      const Value value = evaluate(expression.children[0]);
      Arguments given =
          arguments(expression, fmt::format("filter \"{}\"", printable(expression.name)));
      return apply_filter(expression.name, value, given, budget_);
    }
    case Expression::kTest: {
      const Value value = evaluate(expression.children[0]);
      Arguments given =
          arguments(expression, fmt::format("test \"{}\"", printable(expression.name)));
      return apply_test(expression.name, value, given, budget_);
    }
    case Expression::kUnary:
      return unary(expression);
    case Expression::kBinary:
      return binary(expression);
    case Expression::kCompare:
      return compare(expression);
    case Expression::kConcatenate:
      return concatenate(expression);
    case Expression::kConditional:
      if (evaluate(expression.children[1]).truth()) return evaluate(expression.children[0]);
      return expression.children.size() > 2 ? evaluate(expression.children[2])
                                            : Value(Undefined{"inline if without else"});
  }
  return {};
}

Value Interpreter::lookup(const Expression& expression) const {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    const auto variable = scope->variables.find(expression.name);
    if (variable != scope->variables.end()) return variable->second;
  }
  return Undefined{expression.name};
}

Value Interpreter::dict(const Expression& expression) {
  std::vector<std::pair<Text, Value>> entries;
  for (size_t i = 0; i < expression.children.size(); i += 2) {
    const Value key = evaluate(expression.children[i]);
    Value value = evaluate(expression.children[i + 1]);
    if (key.text() == nullptr) {
      fail(expression.line, "a key of a dictionary is {}, expected a string", key.type());
    }
    budget_.steps(expression.line, entries.size());
    const auto same = [&](const auto& entry) { return entry.first == *key.text(); };
    const auto entry = std::find_if(entries.begin(), entries.end(), same);
    if (entry != entries.end()) {
      entry->second = std::move(value);
    } else {
      entries.emplace_back(*key.text(), std::move(value));
    }
  }
  return make_dict(std::move(entries));
}

Value Interpreter::slice(const Expression& expression) {
  const Value object = evaluate(expression.children[0]);
  std::optional<long> bounds[3];
  for (int i = 0; i < 3; ++i) {
    const Value bound = evaluate(expression.children[1 + i]);
    const bool absent = bound.none() || expression.children[1 + i].kind == Expression::kConstant;
    if (!absent && !bound.integer()) {
      fail(expression.line, "a bound of a slice is {}, expected an integer", bound.type());
    }
    bounds[i] = bound.integer();
  }
  const long step = bounds[2].value_or(1);
  if (step == 0) fail(expression.line, "the step of a slice is 0");
  if (const Text* text = object.text()) {
    budget_.bytes(expression.line, text->size());
    budget_.steps(expression.line, 1 + text->size() / 64);
    return text->slice(bounds[0], bounds[1], step);
  }
  if (object.undefined()) fail_undefined(object, expression.line);
  if (object.list() == nullptr) return Undefined{"slice"};
  const std::vector<Value>& elements = object.list()->elements;
  budget_.steps(expression.line, elements.size());
  std::vector<Value> part;
  for (size_t i : slice_indices(elements.size(), bounds[0], bounds[1], step)) {
    part.push_back(elements[i]);
  }
  return make_list(std::move(part), object.list()->tuple);
}

Value Interpreter::concatenate(const Expression& expression) {
  Text result;
  for (const Expression& child : expression.children) {
    const Text part = to_text(evaluate(child));
    budget_.bytes(expression.line, part.size());
    result.append(part);
  }
  return result;
}

Value Interpreter::unary(const Expression& expression) {
  const Value value = evaluate(expression.children[0]);
  if (expression.name == "not") return !value.truth();
  if (value.undefined()) fail_undefined(value, expression.line);
  const bool minus = expression.name == "-";
  if (const double* real = value.real()) return minus ? -*real : *real;
  const auto integer = value.integer();
  if (!integer) fail(expression.line, "\"{}\" before {}", expression.name, value.type());
  return minus ? arithmetic("-", int64_t{0}, *integer, expression.line) : Value(*integer);
}

Value Interpreter::binary(const Expression& expression) {
  const std::string& op = expression.name;
  Value left = evaluate(expression.children[0]);
  if (op == "and") return left.truth() ? evaluate(expression.children[1]) : left;
  if (op == "or") return left.truth() ? left : evaluate(expression.children[1]);
  const Value right = evaluate(expression.children[1]);
  if (left.undefined()) fail_undefined(left, expression.line);
  if (right.undefined()) fail_undefined(right, expression.line);
  if (op == "+") return add(left, right, expression.line);
  return arithmetic(op, left, right, expression.line);
}

Value Interpreter::add(const Value& a, const Value& b, int line) {
  if (a.text() && b.text()) {
    budget_.bytes(line, a.text()->size() + b.text()->size());
    Text sum = *a.text();
    sum.append(*b.text());
    return sum;
  }
  if (a.list() && b.list()) {
    budget_.steps(line, a.list()->elements.size() + b.list()->elements.size());
    std::vector<Value> sum = a.list()->elements;
    sum.insert(sum.end(), b.list()->elements.begin(), b.list()->elements.end());
    return make_list(std::move(sum));
  }
  return arithmetic("+", a, b, line);
}

Value Interpreter::arithmetic(const std::string& op, const Value& a, const Value& b, int line) {
  if (op == "*" && (a.text() || b.text()) && (a.integer() || b.integer())) {
    const Text& text = a.text() ? *a.text() : *b.text();
    const int64_t times = std::max<int64_t>(0, *(a.integer() ? a : b).integer());
    budget_.steps(line, static_cast<size_t>(times));
    budget_.bytes(line, text.size() * static_cast<size_t>(times));
    Text product;
    for (int64_t i = 0; i < times; ++i) product.append(text);
    return product;
  }
  if (!a.number() || !b.number()) fail(line, "\"{}\" of {} and {}", op, a.type(), b.type());
  const bool division = op == "/" || op == "//" || op == "%";
  if (division && *b.number() == 0) fail(line, "division by zero");
  if (a.integer() && b.integer() && op != "/") {
    const int64_t x = *a.integer(), y = *b.integer();
    int64_t result = 0;
    bool overflow = false;
    if (op == "+") overflow = __builtin_add_overflow(x, y, &result);
    if (op == "-") overflow = __builtin_sub_overflow(x, y, &result);
    if (op == "*") overflow = __builtin_mul_overflow(x, y, &result);
    if (division && y == -1) {
      overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, x, &result);
    } else if (division) {
      result = op == "//" ? floor_divide(x, y) : x - y * floor_divide(x, y);
    }
    if (overflow) fail(line, "\"{}\" overflows", op);
    return result;
  }
  const double x = *a.number(), y = *b.number();
  if (op == "+") return x + y;
  if (op == "-") return x - y;
  if (op == "*") return x * y;
  if (op == "/") return x / y;
  return op == "//" ? std::floor(x / y) : x - y * std::floor(x / y);
}

Value Interpreter::compare(const Expression& expression) {
  Value left = evaluate(expression.children[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(expression.children[i + 1]);
    if (!holds(expression.operators[i], left, right, expression.line)) return false;
    left = std::move(right);
  }
  return true;
}

bool Interpreter::holds(const std::string& op, const Value& a, const Value& b, int line) {
  if (op == "==") return equal(a, b);
  if (op == "!=") return !equal(a, b);
  if (op == "in") return contains(b, a, line, budget_);
  if (op == "not in") return !contains(b, a, line, budget_);
  if (op == "<") return less(a, b, line);
  if (op == ">") return less(b, a, line);
  return less(op == "<=" ? a : b, op == "<=" ? b : a, line) || equal(a, b);
}

Arguments Interpreter::arguments(const Expression& expression, std::string construct) {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
  const size_t count = expression.children.size(), names = expression.keywords.size();
  for (size_t i = 1; i < count; ++i) {
    Value value = evaluate(expression.children[i]);
    if (i < count - names) {
      positional.push_back(std::move(value));
    } else {
      named.emplace_back(expression.keywords[i - (count - names)], std::move(value));
    }
  }
  return {expression.line, std::move(construct), std::move(positional), std::move(named)};
}

Value Interpreter::call(const Expression& expression) {
  const Value callee = evaluate(expression.children[0]);
  if (callee.undefined()) fail_undefined(callee, expression.line);
  const Callable* callable = callee.callable();
  if (callable == nullptr) fail(expression.line, "a call of {}", callee.type());
  Arguments given = arguments(expression, fmt::format("{}()", printable(callable->name)));
  if (callable->macro != nullptr) return call_macro(*callable->macro, given);
  if (callable->self && callable->name != "loop.cycle") {
    return call_method(*callable->self, callable->name, given, budget_);
  }
  if (callable->self) {
    const std::vector<Value> values = given.rest();
    given.done();
    if (values.empty()) given.refuse("has no arguments");
    return values[static_cast<size_t>(*callable->self->integer()) % values.size()];
  }
  Value result = call_function(callable->name, given);
  given.done();
  return result;
}

Value Interpreter::call_macro(const Statement& macro, Arguments& given) {
  const Level level(*this, given.line());
  const size_t parameters = macro.names.size() - 1, defaults = macro.expressions.size();
  const Inside scope(*this, &globals_);
  for (size_t i = 0; i < parameters; ++i) {
    const std::string& name = macro.names[i + 1];
    if (std::optional<Value> value = given.take(name)) {
      scope_->variables[name] = *std::move(value);
    } else if (i >= parameters - defaults) {
      scope_->variables[name] = evaluate(macro.expressions[i - (parameters - defaults)]);
    } else {
      scope_->variables[name] = Undefined{name};
    }
  }
  given.done();
  return capture(macro.branches[0]);
}

Value Interpreter::call_function(const std::string& name, Arguments& given) {
  if (name == "raise_exception") {
    fail(given.line(), "raise_exception: {}", one_line(to_text(given.need("message")).bytes()));
  }
  if (name == "strftime_now") {
    const std::time_t now = options_.now.value_or(std::time(nullptr));
    return Value::text(format_time(given.need_text("format").bytes(), now, given));
  }
  if (name == "namespace" || name == "dict") {
    std::vector<std::pair<std::string, Value>> members = given.rest_named();
    if (name == "dict") {
      std::vector<std::pair<Text, Value>> entries;
      for (auto& [key, value] : members) entries.emplace_back(Text(key), std::move(value));
      return make_dict(std::move(entries));
    }
    namespaces_.push_back(std::make_shared<Namespace>());
    for (auto& [key, value] : members) namespaces_.back()->members[key] = std::move(value);
    return namespaces_.back();
  }
  // range
  const Value first = given.need("stop"), second = given.take("stop").value_or(Value());
  const int64_t step = given.take_integer("step").value_or(1);
  if (!first.integer() || (!second.integer() && !second.undefined()) || step == 0) {
    given.refuse("expected integers, and a step other than 0");
  }
  constexpr int64_t kLimit = 100'000;  // of Jinja's sandbox
  int64_t at = second.integer() ? *first.integer() : 0;
  const int64_t stop = second.integer().value_or(*first.integer());
  std::vector<Value> numbers;
  while (step > 0 ? at < stop : at > stop) {
    budget_.steps(given.line());
    if (static_cast<int64_t>(numbers.size()) == kLimit) given.refuse("more than {} steps", kLimit);
    numbers.emplace_back(at);
    if (__builtin_add_overflow(at, step, &at)) break;
  }
  return make_list(std::move(numbers));
}

}  // namespace gsa::jinja
