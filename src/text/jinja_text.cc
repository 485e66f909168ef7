#include "text/jinja_text.h"

#include <string.h>

#include <algorithm>
#include <array>

namespace gsa::jinja {
namespace {

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
char upper(char c) { return is_lower(c) ? static_cast<char>(c - 'a' + 'A') : c; }
char lower(char c) { return is_upper(c) ? static_cast<char>(c - 'A' + 'a') : c; }

// The bytes of every character, in order.
std::vector<std::string_view> character_views(std::string_view text) {
  std::vector<std::string_view> views;
  for (size_t at = 0; at < text.size();) {
    const size_t length = character_bytes(text, at);
    views.push_back(text.substr(at, length));
    at += length;
  }
  return views;
}

bool in_set(std::string_view character, const std::optional<std::string>& set) {
  return set ? set->find(character) != set->npos : is_blank(character);
}

size_t last_character(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && is_continuation(text[at])) --at;
  return at;
}

}  // namespace

size_t character_bytes(std::string_view text, size_t position) {
  size_t end = position + 1;
  while (end < text.size() && is_continuation(text[end])) ++end;
  return end - position;
}

bool is_blank(std::string_view character) {
  if (character.size() == 1) {
    const char c = character[0];
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
  }
  // U+0085, U+00A0, U+1680, U+2000 to U+200A, U+2028, U+2029, U+202F, U+205F, U+3000
  static constexpr std::array<std::string_view, 8> kOthers = {
      "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\xA8",
      "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};
  if (character.size() == 3 && character >= "\xE2\x80\x80" && character <= "\xE2\x80\x8A") {
    return true;
  }
  return std::find(kOthers.begin(), kOthers.end(), character) != kOthers.end();
}

size_t find_text(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return text.npos;
  if (needle.empty()) return from;
  const void* at = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  return at == nullptr ? text.npos
                       : static_cast<size_t>(static_cast<const char*>(at) - text.data());
}

std::vector<size_t> slice_indices(size_t length, std::optional<long> begin, std::optional<long> end,
                                  long step) {
  const long size = static_cast<long>(length);
  const auto clamp = [&](std::optional<long> bound, long absent) {
    if (!bound) return absent;
    const long value = *bound < 0 ? *bound + size : *bound;
    return step > 0 ? std::clamp(value, 0L, size) : std::clamp(value, -1L, size - 1);
  };
  const long first = clamp(begin, step > 0 ? 0 : size - 1);
  const long last = clamp(end, step > 0 ? size : -1);
  std::vector<size_t> indices;
  for (long i = first; step > 0 ? i < last : i > last;) {
    indices.push_back(static_cast<size_t>(i));
    if (step > size || step < -size) break;  // and no overflow
    i += step;
  }
  return indices;
}

size_t Text::characters() const {
  return static_cast<size_t>(
      std::count_if(bytes_.begin(), bytes_.end(), [](char c) { return !is_continuation(c); }));
}

void Text::append(const Text& other) {
  bytes_ += other.bytes_;
  origin_ += other.origin_;
}

void Text::append(std::string_view bytes, bool content) {
  bytes_ += bytes;
  origin_.append(bytes.size(), content ? kContent : kTemplate);
}

Text Text::substr(size_t begin, size_t count) const {
  Text part;
  part.bytes_ = bytes_.substr(begin, count);
  part.origin_ = origin_.substr(begin, count);
  return part;
}

Text Text::slice(std::optional<long> begin, std::optional<long> end, long step) const {
  const std::vector<std::string_view> views = character_views(bytes_);
  Text result;
  for (size_t i : slice_indices(views.size(), begin, end, step)) {
    const size_t at = static_cast<size_t>(views[i].data() - bytes_.data());
    result.bytes_ += views[i];
    result.origin_.append(origin_, at, views[i].size());
  }
  return result;
}

std::vector<Text> Text::split_characters() const {
  std::vector<Text> result;
  for (std::string_view view : character_views(bytes_)) {
    result.push_back(substr(static_cast<size_t>(view.data() - bytes_.data()), view.size()));
  }
  return result;
}

Text Text::strip(const std::optional<std::string>& set, bool left, bool right) const {
  const std::string_view all = bytes_;
  size_t begin = 0, end = all.size();
  while (left && begin < end) {
    const size_t length = character_bytes(all, begin);
    if (!in_set(all.substr(begin, length), set)) break;
    begin += length;
  }
  while (right && begin < end) {
    const size_t last = last_character(all.substr(0, end));
    if (!in_set(all.substr(last, end - last), set)) break;
    end = last;
  }
  return substr(begin, end - begin);
}

Text Text::replace(const std::string& from, const Text& to, long count) const {
  Text result;
  size_t at = 0;
  if (from.empty()) {
    for (; count != 0 && at < size(); --count) {
      result.append(to);
      const size_t length = character_bytes(bytes_, at);
      result.append(substr(at, length));
      at += length;
    }
    if (count != 0) result.append(to);
  }
  for (; !from.empty() && count != 0; --count) {
    const size_t next = find_text(bytes_, from, at);
    if (next == bytes_.npos) break;
    result.append(substr(at, next - at));
    result.append(to);
    at = next + from.size();
  }
  result.append(substr(at));
  return result;
}

std::vector<Text> Text::split_blanks(long max_splits) const {
  std::vector<Text> parts;
  Text rest = strip(std::nullopt, true, false);
  size_t begin = 0;
  const std::string_view all = rest.bytes_;
  for (size_t at = 0; at < all.size();) {
    if (max_splits >= 0 && static_cast<long>(parts.size()) == max_splits) break;
    const size_t length = character_bytes(all, at);
    if (!is_blank(all.substr(at, length))) {
      at += length;
      continue;
    }
    parts.push_back(rest.substr(begin, at - begin));
    while (at < all.size() && is_blank(all.substr(at, character_bytes(all, at)))) {
      at += character_bytes(all, at);
    }
    begin = at;
  }
  if (begin < all.size()) parts.push_back(rest.substr(begin));
  return parts;
}

std::vector<Text> Text::split(const std::string& separator, long max_splits,
                              bool from_right) const {
  std::vector<size_t> places;
  if (from_right) {
    // The places from the right may lie elsewhere than those from the left: "aaa" at "aa".
    const std::string text(bytes_.rbegin(), bytes_.rend());
    const std::string needle(separator.rbegin(), separator.rend());
    for (size_t at = 0; max_splits < 0 || static_cast<long>(places.size()) < max_splits;) {
      const size_t next = find_text(text, needle, at);
      if (next == text.npos) break;
      places.push_back(size() - next - needle.size());
      at = next + needle.size();
    }
    std::reverse(places.begin(), places.end());
  } else {
    for (size_t at = 0; max_splits < 0 || static_cast<long>(places.size()) < max_splits;) {
      const size_t next = find_text(bytes_, separator, at);
      if (next == bytes_.npos) break;
      places.push_back(next);
      at = next + separator.size();
    }
  }
  std::vector<Text> parts;
  size_t begin = 0;
  for (size_t place : places) {
    parts.push_back(substr(begin, place - begin));
    begin = place + separator.size();
  }
  parts.push_back(substr(begin));
  return parts;
}

std::vector<Text> Text::split_lines(bool keep_ends) const {
  std::vector<Text> lines;
  size_t begin = 0;
  const std::string_view all = bytes_;
  for (size_t at = 0; at < all.size();) {
    size_t length = character_bytes(all, at);
    const std::string_view c = all.substr(at, length);
    const bool end = c == "\n" || c == "\r" || c == "\v" || c == "\f" || c == "\x1c" ||
                     c == "\x1d" || c == "\x1e" || c == "\xC2\x85" || c == "\xE2\x80\xA8" ||
                     c == "\xE2\x80\xA9";
    if (all.substr(at, 2) == "\r\n") length = 2;
    if (end) {
      lines.push_back(substr(begin, at - begin + (keep_ends ? length : 0)));
      begin = at + length;
    }
    at += length;
  }
  if (begin < all.size()) lines.push_back(substr(begin));
  return lines;
}

Text Text::with_case(Case what) const {
  Text result = *this;
  bool inside = false;  // past the first character of what gets one capital
  for (char& c : result.bytes_) {
    const bool to_upper = what == Case::kUpper || (what != Case::kLower && !inside);
    if (what == Case::kTitle) {
      inside = is_upper(c) || is_lower(c);
    } else if (what == Case::kWords) {
      inside = !is_blank({&c, 1}) && std::string_view("-({[<").find(c) == std::string_view::npos;
    } else {
      inside = true;
    }
    c = to_upper ? upper(c) : lower(c);
  }
  return result;
}

bool Text::ascii() const {
  return std::none_of(bytes_.begin(), bytes_.end(),
                      [](char c) { return static_cast<unsigned char>(c) >= 0x80; });
}

}  // namespace gsa::jinja
