#include "text/utf8.h"

#include <algorithm>
#include <cstdint>

namespace gsa {
namespace {

// What the bytes at the front of a text are.
struct Front {
  enum Kind { kCharacter, kBeginning, kInvalid } kind;
  size_t length;  // of the character
};

// Table 3-7 of the Unicode standard: the first byte gives the length and the range of the second,
// which excludes overlong forms, surrogates and what lies above U+10FFFF.
Front classify(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  if (first < 0x80) return {Front::kCharacter, 1};
  if (first < 0xC2 || first > 0xF4) return {Front::kInvalid, 0};
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  for (size_t i = 1; i < std::min(length, text.size()); ++i) {
    uint8_t low = 0x80, high = 0xBF;
    if (i == 1) {
      if (first == 0xE0) low = 0xA0;
      if (first == 0xED) high = 0x9F;
      if (first == 0xF0) low = 0x90;
      if (first == 0xF4) high = 0x8F;
    }
    if (byte(i) < low || byte(i) > high) return {Front::kInvalid, 0};
  }
  return {text.size() < length ? Front::kBeginning : Front::kCharacter, length};
}

// Appends to `out` and returns how many bytes of `text` are done with.
size_t transcode(std::string_view text, bool complete, std::string& out) {
  size_t at = 0;
  while (at < text.size()) {
    const Front front = classify(text.substr(at));
    if (front.kind == Front::kBeginning && !complete) break;
    if (front.kind == Front::kCharacter) {
      out += text.substr(at, front.length);
      at += front.length;
    } else {
      out += kReplacement;
      ++at;
    }
  }
  return at;
}

}  // namespace

std::string take_utf8(std::string& bytes, bool complete) {
  std::string out;
  bytes.erase(0, transcode(bytes, complete, out));
  return out;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  transcode(text, /*complete=*/true, out);
  return out;
}

}  // namespace gsa
