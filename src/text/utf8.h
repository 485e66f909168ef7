#pragma once

#include <string>
#include <string_view>

namespace gsa {

// U+2581, which sentencepiece writes for a blank.
inline constexpr std::string_view kBlankSymbol = "\xE2\x96\x81";

// U+FFFD, which stands for a byte that is no UTF-8.
inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Takes the characters off the front of `bytes` and returns them as valid UTF-8. As in
// sentencepiece's decoder, every byte that belongs to no character becomes one U+FFFD. The
// beginning of a character that more bytes could complete, at most three bytes, stays in `bytes`;
// with `complete` nothing more will come, and those bytes become U+FFFD too.
std::string take_utf8(std::string& bytes, bool complete);

// The whole text as valid UTF-8, by the same rule.
std::string repair_utf8(std::string_view text);

}  // namespace gsa
