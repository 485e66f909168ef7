#include "text/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include <fmt/format.h>

#include "kernels/error.h"

namespace gsa::jinja {
namespace {

int depth_of(int deepest) {
  if (deepest >= kMaxValueDepth) {
    throw Error("chat template: lists and dictionaries lie deeper than {} within each other",
                kMaxValueDepth);
  }
  return deepest + 1;
}

std::string real_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == text.npos) text += ".0";
  return text;
}

void append_template(Text& out, std::string_view bytes) { out.append(bytes, false); }

// Python's repr of a string: its own quotes, escapes for what does not print.
Text quoted(const Text& text) {
  const std::string& bytes = text.bytes();
  const bool single = bytes.find('\'') == bytes.npos || bytes.find('"') != bytes.npos;
  const char quote = single ? '\'' : '"';
  Text out;
  append_template(out, {&quote, 1});
  for (size_t i = 0; i < bytes.size(); ++i) {
    const char c = bytes[i];
    const auto code = static_cast<unsigned char>(c);
    const size_t named = std::string_view("\n\r\t").find(c);
    if (named != std::string_view::npos) {
      out.append(fmt::format("\\{}", "nrt"[named]), text.content(i));
    } else if (c == '\\' || c == quote) {
      out.append(fmt::format("\\{}", c), text.content(i));
    } else if (code < 0x20 || code == 0x7f) {
      out.append(fmt::format("\\x{:02x}", code), text.content(i));
    } else {
      out.append({&c, 1}, text.content(i));
    }
  }
  append_template(out, {&quote, 1});
  return out;
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, Text& out) : style_(style), out_(out) {}

  bool write(const Value& value, int64_t level) {
    if (value.none()) return plain("null");
    if (const bool* boolean = value.boolean()) return plain(*boolean ? "true" : "false");
    if (const double* real = value.real()) return plain(json_real(*real));
    if (const auto integer = value.integer()) return plain(std::to_string(*integer));
    if (const Text* text = value.text()) return string(*text);
    if (const List* list = value.list()) {
      return sequence("[", "]", list->elements.size(), level,
                      [&](size_t i) { return write(list->elements[i], level + 1); });
    }
    if (const Dict* dict = value.dict()) {
      std::vector<const std::pair<Text, Value>*> entries;
      for (const auto& entry : dict->entries) entries.push_back(&entry);
      if (style_.sort_keys) {
        std::sort(entries.begin(), entries.end(),
                  [](const auto* a, const auto* b) { return a->first.bytes() < b->first.bytes(); });
      }
      return sequence("{", "}", entries.size(), level, [&](size_t i) {
        string(entries[i]->first);
        append_template(out_, style_.key_separator);
        return write(entries[i]->second, level + 1);
      });
    }
    return false;
  }

 private:
  static std::string json_real(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return real_text(value);
  }

  bool plain(std::string_view text) {
    append_template(out_, text);
    return true;
  }

  template <typename Each>
  bool sequence(const char* open, const char* close, size_t count, int64_t level, Each each) {
    append_template(out_, open);
    for (size_t i = 0; i < count; ++i) {
      if (i > 0) append_template(out_, style_.item_separator);
      new_line(level + 1);
      if (!each(i)) return false;
    }
    if (count > 0) new_line(level);
    append_template(out_, close);
    return true;
  }

  void new_line(int64_t level) {
    if (style_.indent < 0) return;
    append_template(out_, "\n");
    for (int64_t i = 0; i < level * style_.indent; ++i) append_template(out_, " ");
  }

  bool string(const Text& text) {
    const std::string& bytes = text.bytes();
    append_template(out_, "\"");
    for (size_t i = 0; i < bytes.size();) {
      const size_t length = character_bytes(bytes, i);
      out_.append(escaped(std::string_view(bytes).substr(i, length)), text.content(i));
      i += length;
    }
    append_template(out_, "\"");
    return true;
  }

  std::string escaped(std::string_view character) const {
    const char c = character[0];
    switch (c) {
      case '"':
        return "\\\"";
      case '\\':
        return "\\\\";
      case '\n':
        return "\\n";
      case '\r':
        return "\\r";
      case '\t':
        return "\\t";
      case '\f':
        return "\\f";
      case '\b':
        return "\\b";
    }
    if (static_cast<unsigned char>(c) < 0x20) return fmt::format("\\u{:04x}", c);
    if (!style_.ensure_ascii || character.size() == 1) {
      // Python escapes DEL with ensure_ascii alone.
      return style_.ensure_ascii && c == 0x7f ? "\\u007f" : std::string(character);
    }
    uint32_t code = static_cast<unsigned char>(c) & (0xFF >> (character.size() + 1));
    for (size_t i = 1; i < character.size(); ++i) {
      code = code << 6 | (static_cast<unsigned char>(character[i]) & 0x3F);
    }
    if (code < 0x10000) return fmt::format("\\u{:04x}", code);
    code -= 0x10000;
    return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF));
  }

  const JsonStyle& style_;
  Text& out_;
};

Text sequence_repr(const char* open, const char* close, size_t count,
                   const std::function<Text(size_t)>& each) {
  Text out{std::string_view(open)};
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) append_template(out, ", ");
    out.append(each(i));
  }
  append_template(out, close);
  return out;
}

}  // namespace

std::optional<int64_t> Value::integer() const {
  if (const auto* value = std::get_if<int64_t>(&data_)) return *value;
  if (const auto* value = std::get_if<bool>(&data_)) return *value ? 1 : 0;
  return std::nullopt;
}

std::optional<double> Value::number() const {
  if (const double* value = real()) return *value;
  if (const auto value = integer()) return static_cast<double>(*value);
  return std::nullopt;
}

bool Value::truth() const {
  if (undefined() || none()) return false;
  if (const auto value = number()) return *value != 0;
  if (text() != nullptr) return !text()->empty();
  if (list() != nullptr) return !list()->elements.empty();
  if (dict() != nullptr) return !dict()->entries.empty();
  return true;
}

int Value::depth() const {
  if (list() != nullptr) return list()->depth;
  if (dict() != nullptr) return dict()->depth;
  if (callable() != nullptr && callable()->self) return callable()->self->depth();
  return 0;
}

std::string Value::type() const {
  if (undefined()) return "undefined";
  if (none()) return "none";
  if (boolean() != nullptr) return "a boolean";
  if (real() != nullptr) return "a real number";
  if (integer()) return "an integer";
  if (text() != nullptr) return "a string";
  if (list() != nullptr) return "a list";
  if (dict() != nullptr) return "a dictionary";
  return name_space() != nullptr ? "a namespace" : "a function";
}

const Value* Dict::get(std::string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name.bytes() == key) return &value;
  }
  return nullptr;
}

Value make_list(std::vector<Value> elements, bool tuple) {
  int deepest = 0;
  for (const Value& element : elements) deepest = std::max(deepest, element.depth());
  return std::make_shared<const List>(List{std::move(elements), depth_of(deepest), tuple});
}

Value make_dict(std::vector<std::pair<Text, Value>> entries) {
  int deepest = 0;
  for (const auto& [key, value] : entries) deepest = std::max(deepest, value.depth());
  return std::make_shared<const Dict>(Dict{std::move(entries), depth_of(deepest)});
}

bool equal(const Value& a, const Value& b) {
  if (a.integer() && b.integer()) return *a.integer() == *b.integer();
  if (a.number() && b.number()) return *a.number() == *b.number();
  if (a.text() && b.text()) return *a.text() == *b.text();
  if (a.list() && b.list()) {
    return a.list()->tuple == b.list()->tuple &&
           std::equal(a.list()->elements.begin(), a.list()->elements.end(),
                      b.list()->elements.begin(), b.list()->elements.end(), equal);
  }
  if (a.dict() && b.dict()) {
    if (a.dict()->entries.size() != b.dict()->entries.size()) return false;
    return std::all_of(a.dict()->entries.begin(), a.dict()->entries.end(), [&](const auto& entry) {
      const Value* other = b.dict()->get(entry.first.bytes());
      return other != nullptr && equal(entry.second, *other);
    });
  }
  if (a.name_space() || b.name_space()) return a.name_space() == b.name_space();
  if (a.callable() || b.callable()) return a.callable() == b.callable();
  return (a.none() && b.none()) || (a.undefined() && b.undefined());
}

Text to_text(const Value& value) {
  if (value.text()) return *value.text();
  return value.undefined() ? Text() : to_repr(value);
}

Text to_repr(const Value& value) {
  if (value.undefined()) return Text("Undefined");
  if (value.none()) return Text("None");
  if (const bool* boolean = value.boolean()) return Text(*boolean ? "True" : "False");
  if (const double* real = value.real()) return Text(real_text(*real));
  if (const auto integer = value.integer()) return Text(std::to_string(*integer));
  if (value.text()) return quoted(*value.text());
  if (const List* list = value.list()) {
    const char* close = !list->tuple ? "]" : list->elements.size() == 1 ? ",)" : ")";
    return sequence_repr(list->tuple ? "(" : "[", close, list->elements.size(),
                         [&](size_t i) { return to_repr(list->elements[i]); });
  }
  if (const Dict* dict = value.dict()) {
    return sequence_repr("{", "}", dict->entries.size(), [&](size_t i) {
      Text entry = quoted(dict->entries[i].first);
      append_template(entry, ": ");
      entry.append(to_repr(dict->entries[i].second));
      return entry;
    });
  }
  return Text(value.name_space() ? "<Namespace>" : "<function>");
}

bool to_json(const Value& value, const JsonStyle& style, Text& out) {
  return JsonWriter(style, out).write(value, 0);
}

}  // namespace gsa::jinja
