#include "text/jinja_call.h"

#include "checkpoint/json.h"

namespace gsa::jinja {

std::optional<Value> Arguments::take(std::string_view name) {
  if (next_ < positional_.size()) return positional_[next_++];
  return take_named(name);
}

std::optional<Value> Arguments::take_named(std::string_view name) {
  for (auto it = named_.begin(); it != named_.end(); ++it) {
    if (it->first != name) continue;
    Value value = std::move(it->second);
    named_.erase(it);
    return value;
  }
  return std::nullopt;
}

Value Arguments::need(std::string_view name) {
  std::optional<Value> value = take(name);
  if (!value) refuse("the argument \"{}\" is missing", name);
  return *std::move(value);
}

std::optional<Text> Arguments::take_text(std::string_view name) {
  const std::optional<Value> value = take(name);
  if (!value || value->none()) return std::nullopt;
  if (value->text() == nullptr) {
    refuse("the argument \"{}\" is {}, expected a string", name, value->type());
  }
  return *value->text();
}

Text Arguments::need_text(std::string_view name) {
  const Value value = need(name);
  if (value.text() == nullptr) {
    refuse("the argument \"{}\" is {}, expected a string", name, value.type());
  }
  return *value.text();
}

std::optional<int64_t> Arguments::take_integer(std::string_view name) {
  const std::optional<Value> value = take(name);
  if (!value || value->none()) return std::nullopt;
  if (!value->integer()) {
    refuse("the argument \"{}\" is {}, expected an integer", name, value->type());
  }
  return value->integer();
}

bool Arguments::take_flag(std::string_view name, bool absent) {
  const std::optional<Value> value = take(name);
  return value ? value->truth() : absent;
}

std::vector<Value> Arguments::rest() {
  std::vector<Value> values(positional_.begin() + static_cast<long>(next_), positional_.end());
  next_ = positional_.size();
  return values;
}

void Arguments::done() const {
  if (next_ < positional_.size()) refuse("has too many arguments");
  if (!named_.empty()) refuse("has no argument \"{}\"", printable(named_.front().first));
}

std::vector<Value> iterate(const Value& value, int line, Budget& budget) {
  std::vector<Value> elements;
  if (const List* list = value.list()) {
    budget.steps(line, list->elements.size());
    return list->elements;
  }
  if (const Text* text = value.text()) {
    budget.steps(line, text->size());
    for (Text& character : text->split_characters()) elements.emplace_back(std::move(character));
    return elements;
  }
  if (const Dict* dict = value.dict()) {
    budget.steps(line, dict->entries.size());
    for (const auto& [key, element] : dict->entries) elements.emplace_back(key);
    return elements;
  }
  if (!value.undefined()) fail(line, "{} has no elements to go through", value.type());
  return elements;
}

namespace {

[[noreturn]] void fail_undefined(const Value& value, int line) {
  fail(line, "\"{}\" is undefined", printable(value.undefined_name()));
}

}  // namespace

Value get_item(const Value& object, const Value& key, int line, Budget& budget) {
  if (object.undefined()) fail_undefined(object, line);
  if (key.undefined()) fail_undefined(key, line);
  if (const Text* name = key.text()) {
    if (const Dict* dict = object.dict()) {
      budget.steps(line, dict->entries.size());
      if (const Value* found = dict->get(name->bytes())) return *found;
    }
    return get_attribute(object, name->bytes(), line);
  }
  const auto integer = key.integer();
  if (!integer) return Undefined{"item"};
  if (const List* list = object.list()) {
    const auto size = static_cast<int64_t>(list->elements.size());
    const int64_t index = *integer < 0 ? *integer + size : *integer;
    if (index >= 0 && index < size) return list->elements[static_cast<size_t>(index)];
  }
  if (const Text* text = object.text()) {
    budget.steps(line, 1 + text->size() / 64);
    Text character =
        text->slice(*integer, *integer == -1 ? std::nullopt : std::optional<long>(*integer + 1), 1);
    if (!character.empty()) return character;
  }
  return Undefined{std::to_string(*integer)};
}

Value get_attribute(const Value& object, const std::string& name, int line) {
  if (object.undefined()) fail_undefined(object, line);
  if (const Namespace* space = object.name_space()) {
    const auto member = space->members.find(name);
    if (member != space->members.end()) return member->second;
  }
  if (has_method(object, name)) {
    return std::make_shared<const Callable>(Callable{name, nullptr, object});
  }
  if (const Dict* dict = object.dict()) {
    if (const Value* found = dict->get(name)) return *found;
  }
  return Undefined{name};
}

bool contains(const Value& haystack, const Value& needle, int line, Budget& budget) {
  if (const Text* text = haystack.text()) {
    if (needle.text() == nullptr) fail(line, "\"in\": {} in a string", needle.type());
    budget.steps(line, 1 + text->size() / 64);
    return find_text(text->bytes(), needle.text()->bytes()) != std::string::npos;
  }
  if (const Dict* dict = haystack.dict()) {
    budget.steps(line, dict->entries.size());
    return needle.text() != nullptr && dict->get(needle.text()->bytes()) != nullptr;
  }
  for (const Value& element : iterate(haystack, line, budget)) {
    if (equal(element, needle)) return true;
  }
  return false;
}

bool less(const Value& a, const Value& b, int line) {
  for (const Value* value : {&a, &b}) {
    if (value->undefined()) fail_undefined(*value, line);
  }
  if (a.integer() && b.integer()) return *a.integer() < *b.integer();
  if (a.number() && b.number()) return *a.number() < *b.number();
  if (a.text() && b.text()) return a.text()->bytes() < b.text()->bytes();
  fail(line, "{} and {} have no order", a.type(), b.type());
}

Value with_case(const Text& text, Text::Case what, const Arguments& arguments, Budget& budget) {
  if (!text.ascii()) arguments.refuse("is supported for ASCII text only");
  budget.bytes(arguments.line(), text.size());
  return text.with_case(what);
}

}  // namespace gsa::jinja
