#include <algorithm>
#include <charconv>
#include <functional>
#include <map>

#include "checkpoint/json.h"
#include "text/jinja_call.h"

namespace gsa::jinja {
namespace {

using Filter = Value (*)(const Value&, Arguments&, Budget&);

// Most filters take any value as the text it prints.
Text text_of(const Value& value, const Arguments& arguments, Budget& budget) {
  Text text = to_text(value);
  budget.bytes(arguments.line(), text.size());
  return text;
}

template <Text::Case kCase>
Value case_filter(const Value& value, Arguments& arguments, Budget& budget) {
  return with_case(text_of(value, arguments, budget), kCase, arguments, budget);
}

Value trim(const Value& value, Arguments& arguments, Budget& budget) {
  const std::optional<Text> set = arguments.take_text("chars");
  return text_of(value, arguments, budget)
      .strip(set ? std::optional(set->bytes()) : std::nullopt, true, true);
}

Value length(const Value& value, Arguments& arguments, Budget& budget) {
  if (value.text()) {
    budget.steps(arguments.line(), 1 + value.text()->size() / 64);
    return static_cast<int64_t>(value.text()->characters());
  }
  if (value.list()) return static_cast<int64_t>(value.list()->elements.size());
  if (value.dict()) return static_cast<int64_t>(value.dict()->entries.size());
  if (!value.undefined()) arguments.refuse("{} has no length", value.type());
  return int64_t{0};
}

Value first(const Value& value, Arguments& arguments, Budget& budget) {
  if (value.text()) return get_item(value, int64_t{0}, arguments.line(), budget);
  const std::vector<Value> all = iterate(value, arguments.line(), budget);
  return all.empty() ? Value(Undefined{"first"}) : all.front();
}

Value last(const Value& value, Arguments& arguments, Budget& budget) {
  if (value.text()) return get_item(value, int64_t{-1}, arguments.line(), budget);
  const std::vector<Value> all = iterate(value, arguments.line(), budget);
  return all.empty() ? Value(Undefined{"last"}) : all.back();
}

// As the filters that go through a value lazily do: what is false has no elements.
std::vector<Value> iterate_lazily(const Value& value, int line, Budget& budget) {
  return value.truth() ? iterate(value, line, budget) : std::vector<Value>();
}

Value attribute_of(const Value& value, const Value& path, const Arguments& arguments,
                   Budget& budget) {
  if (path.text() == nullptr) return get_item(value, path, arguments.line(), budget);
  Value result = value;
  for (const Text& part : path.text()->split(".", -1, false)) {
    result = get_item(result, part, arguments.line(), budget);
  }
  return result;
}

Value join(const Value& value, Arguments& arguments, Budget& budget) {
  const Text separator = arguments.take_text("d").value_or(Text());
  const std::optional<Value> attribute = arguments.take("attribute");
  Text result;
  bool later = false;
  for (const Value& element : iterate(value, arguments.line(), budget)) {
    const Text text =
        to_text(attribute ? attribute_of(element, *attribute, arguments, budget) : element);
    budget.bytes(arguments.line(), text.size() + separator.size());
    if (later) result.append(separator);
    result.append(text);
    later = true;
  }
  return result;
}

Value replace(const Value& value, Arguments& arguments, Budget& budget) {
  const Text from = arguments.need_text("old"), to = arguments.need_text("new");
  const int64_t count = arguments.take_integer("count").value_or(-1);
  const Text text = text_of(value, arguments, budget);
  budget.bytes(arguments.line(), (text.size() / std::max<size_t>(1, from.size()) + 1) * to.size());
  return text.replace(from.bytes(), to, count);
}

Value default_value(const Value& value, Arguments& arguments, Budget&) {
  const Value fallback = arguments.take("default_value").value_or(Value::text(""));
  const bool falsy = arguments.take_flag("boolean", false);
  return value.undefined() || (falsy && !value.truth()) ? fallback : value;
}

Value to_json_filter(const Value& value, Arguments& arguments, Budget& budget) {
  JsonStyle style;
  style.ensure_ascii = arguments.take_flag("ensure_ascii", false);
  if (const auto indent = arguments.take_integer("indent")) {
    if (*indent < 0 || *indent > 16) arguments.refuse("indent is {}, expected 0 to 16", *indent);
    style.indent = *indent;
  }
  style.item_separator = style.indent >= 0 ? "," : ", ";
  style.key_separator = ": ";
  const std::optional<Value> separators = arguments.take("separators");
  if (separators && !separators->none()) {
    const List* list = separators->list();
    if (list == nullptr || list->elements.size() != 2 || !list->elements[0].text() ||
        !list->elements[1].text()) {
      arguments.refuse("separators must be two strings");
    }
    style.item_separator = list->elements[0].text()->bytes();
    style.key_separator = list->elements[1].text()->bytes();
  }
  style.sort_keys = arguments.take_flag("sort_keys", false);
  Text out;
  if (!to_json(value, style, out)) arguments.refuse("the value has no JSON form");
  budget.bytes(arguments.line(), out.size());
  return out;
}

template <typename T>
std::optional<T> parse_number(const Value& value) {
  if (value.text() == nullptr) return std::nullopt;
  const std::string text = value.text()->strip(std::nullopt, true, true).bytes();
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  T number{};
  const auto [end, error] = std::from_chars(begin, text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

Value to_integer(const Value& value, Arguments& arguments, Budget&) {
  const Value fallback = arguments.take("default").value_or(Value(int64_t{0}));
  if (const auto integer = value.integer()) return *integer;
  constexpr double kLimit = 9e18;
  const std::optional<double> real =
      value.real() ? std::optional(*value.real()) : parse_number<double>(value);
  if (const auto integer = parse_number<int64_t>(value)) return *integer;
  if (!real || !(*real > -kLimit && *real < kLimit)) return fallback;
  return static_cast<int64_t>(*real);
}

Value to_real(const Value& value, Arguments& arguments, Budget&) {
  const Value fallback = arguments.take("default").value_or(Value(0.0));
  if (const auto number = value.number()) return *number;
  const auto parsed = parse_number<double>(value);
  return parsed ? Value(*parsed) : fallback;
}

Value absolute(const Value& value, Arguments& arguments, Budget&) {
  if (const double* real = value.real()) return *real < 0 ? -*real : *real;
  const auto integer = value.integer();
  if (!integer || *integer == INT64_MIN) arguments.refuse("{} has none", value.type());
  return *integer < 0 ? -*integer : *integer;
}

Value reverse(const Value& value, Arguments& arguments, Budget& budget) {
  if (value.text()) {
    budget.bytes(arguments.line(), value.text()->size());
    return value.text()->slice(std::nullopt, std::nullopt, -1);
  }
  std::vector<Value> elements = iterate(value, arguments.line(), budget);
  std::reverse(elements.begin(), elements.end());
  return make_list(std::move(elements));
}

Value map(const Value& value, Arguments& arguments, Budget& budget) {
  std::vector<Value> results;
  const std::vector<Value> elements = iterate_lazily(value, arguments.line(), budget);
  if (std::optional<Value> attribute = arguments.take_named("attribute")) {
    const std::optional<Value> fallback = arguments.take_named("default");
    for (const Value& element : elements) {
      Value result = attribute_of(element, *attribute, arguments, budget);
      results.push_back(result.undefined() && fallback ? *fallback : std::move(result));
    }
    return make_list(std::move(results));
  }
  const std::string name = arguments.need_text("filter").bytes();
  const Arguments given(arguments.line(), fmt::format("filter \"{}\"", printable(name)),
                        arguments.rest(), arguments.rest_named());
  for (const Value& element : elements) {
    Arguments own = given;
    results.push_back(apply_filter(name, element, own, budget));
  }
  return make_list(std::move(results));
}

// select, reject, selectattr, rejectattr.
template <bool kAttribute, bool kKeep>
Value choose(const Value& value, Arguments& arguments, Budget& budget) {
  const Value attribute = kAttribute ? arguments.need("attribute") : Value();
  const std::optional<Text> test = arguments.take_text("test");
  const std::string name = test ? test->bytes() : "";
  const Arguments given(arguments.line(), fmt::format("test \"{}\"", printable(name)),
                        arguments.rest(), {});
  std::vector<Value> results;
  for (const Value& element : iterate_lazily(value, arguments.line(), budget)) {
    const Value tested = kAttribute ? attribute_of(element, attribute, arguments, budget) : element;
    Arguments own = given;
    const bool holds = test ? apply_test(name, tested, own, budget) : tested.truth();
    if (holds == kKeep) results.push_back(element);
  }
  return make_list(std::move(results));
}

Value items(const Value& value, Arguments& arguments, Budget& budget) {
  if (value.undefined()) return make_list({});
  if (value.dict() == nullptr) arguments.refuse("{} has no items", value.type());
  return call_method(value, "items", arguments, budget);
}

Value indent(const Value& value, Arguments& arguments, Budget& budget) {
  const std::optional<Value> width = arguments.take("width");
  const bool first_line = arguments.take_flag("first", false);
  const bool blank_lines = arguments.take_flag("blank", false);
  Text margin(std::string(4, ' '));
  if (width && width->text()) {
    margin = *width->text();
  } else if (width) {
    const int64_t count = width->integer().value_or(-1);
    if (count < 0 || count > 1000) arguments.refuse("the width is not 0 to 1000");
    margin = Text(std::string(static_cast<size_t>(count), ' '));
  }
  Text text = text_of(value, arguments, budget);
  text.append("\n", false);  // as Jinja: a line end at the end gives one more line
  Text result;
  bool later = false;
  for (const Text& line : text.split_lines(false)) {
    budget.bytes(arguments.line(), line.size() + margin.size() + 1);
    if (later) result.append("\n", false);
    if (later ? blank_lines || !line.empty() : first_line) result.append(margin);
    result.append(line);
    later = true;
  }
  return result;
}

Value to_list(const Value& value, Arguments& arguments, Budget& budget) {
  return make_list(iterate(value, arguments.line(), budget));
}

Value to_string(const Value& value, Arguments& arguments, Budget& budget) {
  return text_of(value, arguments, budget);
}

const std::map<std::string_view, Filter>& filters() {
  static const std::map<std::string_view, Filter> all = {
      {"abs", absolute},
      {"capitalize", case_filter<Text::Case::kCapitalize>},
      {"count", length},
      {"d", default_value},
      {"default", default_value},
      {"first", first},
      {"float", to_real},
      {"indent", indent},
      {"int", to_integer},
      {"items", items},
      {"join", join},
      {"last", last},
      {"length", length},
      {"list", to_list},
      {"lower", case_filter<Text::Case::kLower>},
      {"map", map},
      {"reject", choose<false, false>},
      {"rejectattr", choose<true, false>},
      {"replace", replace},
      {"reverse", reverse},
      {"safe", to_string},
      {"select", choose<false, true>},
      {"selectattr", choose<true, true>},
      {"string", to_string},
      {"title", case_filter<Text::Case::kWords>},
      {"tojson", to_json_filter},
      {"trim", trim},
      {"upper", case_filter<Text::Case::kUpper>},
  };
  return all;
}

}  // namespace

Value apply_filter(const std::string& name, const Value& value, Arguments& arguments,
                   Budget& budget) {
  const auto filter = filters().find(name);
  if (filter == filters().end()) {
    fail(arguments.line(), "the filter \"{}\" is not supported", printable(name));
  }
  budget.steps(arguments.line());
  Value result = filter->second(value, arguments, budget);
  arguments.done();
  return result;
}

bool is_filter(std::string_view name) { return filters().count(name) > 0; }

}  // namespace gsa::jinja
