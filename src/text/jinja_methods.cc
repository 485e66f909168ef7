#include <algorithm>
#include <map>

#include "checkpoint/json.h"
#include "text/jinja_call.h"

namespace gsa::jinja {
namespace {

using TextMethod = Value (*)(const Text&, Arguments&, Budget&);
using DictMethod = Value (*)(const Dict&, Arguments&, Budget&);

Value list_of(std::vector<Text> texts) {
  std::vector<Value> values;
  for (Text& text : texts) values.emplace_back(std::move(text));
  return make_list(std::move(values));
}

template <bool kLeft, bool kRight>
Value strip(const Text& self, Arguments& arguments, Budget& budget) {
  const std::optional<Text> set = arguments.take_text("chars");
  budget.bytes(arguments.line(), self.size());
  return self.strip(set ? std::optional(set->bytes()) : std::nullopt, kLeft, kRight);
}

template <Text::Case kCase>
Value case_method(const Text& self, Arguments& arguments, Budget& budget) {
  return with_case(self, kCase, arguments, budget);
}

template <bool kFromRight>
Value split(const Text& self, Arguments& arguments, Budget& budget) {
  const std::optional<Text> separator = arguments.take_text("sep");
  const int64_t count = arguments.take_integer("maxsplit").value_or(-1);
  budget.bytes(arguments.line(), 2 * self.size());
  budget.steps(arguments.line(), self.size());
  if (!separator) {
    if (kFromRight && count >= 0) arguments.refuse("maxsplit without a separator");
    return list_of(self.split_blanks(count));
  }
  if (separator->empty()) arguments.refuse("the separator is empty");
  return list_of(self.split(separator->bytes(), count, kFromRight));
}

Value split_lines(const Text& self, Arguments& arguments, Budget& budget) {
  const bool keep_ends = arguments.take_flag("keepends", false);
  budget.bytes(arguments.line(), self.size());
  budget.steps(arguments.line(), self.size());
  return list_of(self.split_lines(keep_ends));
}

Value replace(const Text& self, Arguments& arguments, Budget& budget) {
  const Text from = arguments.need_text("old"), to = arguments.need_text("new");
  const int64_t count = arguments.take_integer("count").value_or(-1);
  budget.bytes(arguments.line(),
               self.size() + (self.size() / std::max<size_t>(1, from.size()) + 1) * to.size());
  return self.replace(from.bytes(), to, count);
}

// startswith and endswith take one string or several.
template <bool kStart>
Value has_affix(const Text& self, Arguments& arguments, Budget& budget) {
  const Value affix = arguments.need(kStart ? "prefix" : "suffix");
  const auto matches = [&](const Value& value) {
    if (value.text() == nullptr) arguments.refuse("{}, expected a string", value.type());
    const std::string& text = value.text()->bytes();
    return kStart ? self.bytes().starts_with(text) : self.bytes().ends_with(text);
  };
  if (affix.list() == nullptr) return matches(affix);
  budget.steps(arguments.line(), affix.list()->elements.size());
  return std::any_of(affix.list()->elements.begin(), affix.list()->elements.end(), matches);
}

template <bool kStart>
Value remove_affix(const Text& self, Arguments& arguments, Budget& budget) {
  const std::string affix = arguments.need_text(kStart ? "prefix" : "suffix").bytes();
  budget.bytes(arguments.line(), self.size());
  if (kStart && self.bytes().starts_with(affix)) return self.substr(affix.size());
  if (!kStart && self.bytes().ends_with(affix)) return self.substr(0, self.size() - affix.size());
  return self;
}

// In characters; -1: not there.
template <bool kLast>
Value position(const Text& self, Arguments& arguments, Budget& budget) {
  const std::string needle = arguments.need_text("sub").bytes();
  budget.steps(arguments.line(), 1 + self.size());
  const size_t at =
      kLast ? self.split(needle.empty() ? std::string(1, '\0') : needle, 1, true).front().size()
            : find_text(self.bytes(), needle);
  if (kLast && needle.empty()) return static_cast<int64_t>(self.characters());
  if (at == std::string::npos || (kLast && at == self.size())) return int64_t{-1};
  return static_cast<int64_t>(self.substr(0, at).characters());
}

Value count(const Text& self, Arguments& arguments, Budget& budget) {
  const std::string needle = arguments.need_text("sub").bytes();
  budget.steps(arguments.line(), 1 + self.size());
  if (needle.empty()) return static_cast<int64_t>(self.characters()) + 1;
  int64_t found = 0;
  for (size_t at = 0; (at = find_text(self.bytes(), needle, at)) != std::string::npos;
       at += needle.size()) {
    ++found;
  }
  return found;
}

Value join(const Text& self, Arguments& arguments, Budget& budget) {
  const std::vector<Value> elements = iterate(arguments.need("iterable"), arguments.line(), budget);
  Text result;
  for (size_t i = 0; i < elements.size(); ++i) {
    const Text* text = elements[i].text();
    if (text == nullptr) arguments.refuse("{}, expected strings", elements[i].type());
    budget.bytes(arguments.line(), text->size() + self.size());
    if (i > 0) result.append(self);
    result.append(*text);
  }
  return result;
}

template <bool kDigit>
Value is_class(const Text& self, Arguments& arguments, Budget& budget) {
  budget.steps(arguments.line(), 1 + self.size() / 64);
  if (!self.ascii()) arguments.refuse("is supported for ASCII text only");
  return !self.empty() && std::all_of(self.bytes().begin(), self.bytes().end(), [](char c) {
    return kDigit ? c >= '0' && c <= '9' : (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  });
}

const std::map<std::string_view, TextMethod>& text_methods() {
  static const std::map<std::string_view, TextMethod> all = {
      {"capitalize", case_method<Text::Case::kCapitalize>},
      {"count", count},
      {"endswith", has_affix<false>},
      {"find", position<false>},
      {"isalpha", is_class<false>},
      {"isdigit", is_class<true>},
      {"join", join},
      {"lower", case_method<Text::Case::kLower>},
      {"lstrip", strip<true, false>},
      {"removeprefix", remove_affix<true>},
      {"removesuffix", remove_affix<false>},
      {"replace", replace},
      {"rfind", position<true>},
      {"rsplit", split<true>},
      {"rstrip", strip<false, true>},
      {"split", split<false>},
      {"splitlines", split_lines},
      {"startswith", has_affix<true>},
      {"strip", strip<true, true>},
      {"title", case_method<Text::Case::kTitle>},
      {"upper", case_method<Text::Case::kUpper>},
  };
  return all;
}

Value get(const Dict& self, Arguments& arguments, Budget& budget) {
  const Value key = arguments.need("key");
  const Value fallback = arguments.take("default").value_or(Value(None{}));
  budget.steps(arguments.line(), self.entries.size());
  const Value* found = key.text() ? self.get(key.text()->bytes()) : nullptr;
  return found ? *found : fallback;
}

// keys, values and items.
template <bool kKeys, bool kValues>
Value list_entries(const Dict& self, Arguments& arguments, Budget& budget) {
  budget.steps(arguments.line(), self.entries.size());
  std::vector<Value> elements;
  for (const auto& [key, value] : self.entries) {
    if (kKeys && kValues) {
      elements.push_back(make_list({key, value}, /*tuple=*/true));
    } else {
      elements.push_back(kKeys ? Value(key) : value);
    }
  }
  return make_list(std::move(elements));
}

const std::map<std::string_view, DictMethod>& dict_methods() {
  static const std::map<std::string_view, DictMethod> all = {
      {"get", get},
      {"items", list_entries<true, true>},
      {"keys", list_entries<true, false>},
      {"values", list_entries<false, true>},
  };
  return all;
}

}  // namespace

bool has_method(const Value& self, std::string_view name) {
  if (self.text() != nullptr) return text_methods().count(name) > 0;
  return self.dict() != nullptr && dict_methods().count(name) > 0;
}

Value call_method(const Value& self, const std::string& name, Arguments& arguments,
                  Budget& budget) {
  budget.steps(arguments.line());
  Value result;
  if (const Text* text = self.text()) {
    result = text_methods().at(name)(*text, arguments, budget);
  } else {
    result = dict_methods().at(name)(*self.dict(), arguments, budget);
  }
  arguments.done();
  return result;
}

}  // namespace gsa::jinja
