#include "text/utf8.h"

#include <cstdint>

namespace gsa {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// Length of the character that a first byte announces, and the range of its second byte.
struct Lead {
  size_t length;
  uint8_t low, high;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xc2) return {0, 0, 0};
  if (byte < 0xe0) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte < 0xf0) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte < 0xf4) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

}  // namespace

Utf8Prefix utf8_prefix(std::string_view text) {
  const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
  if (lead.length == 0) return {.bytes = 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (i == text.size()) return {.bytes = 1, .unfinished = true};
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const uint8_t low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xbf;
    if (byte < low || byte > high) return {.bytes = 1};
  }
  return {.bytes = lead.length, .valid = true};
}

std::string repair_utf8(std::string_view text) {
  std::string repaired;
  while (!text.empty()) {
    const Utf8Prefix prefix = utf8_prefix(text);
    repaired += prefix.valid ? text.substr(0, prefix.bytes) : kReplacement;
    text.remove_prefix(prefix.bytes);
  }
  return repaired;
}

}  // namespace gsa
