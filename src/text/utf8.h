#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace gsa {

// What stands at the beginning of some bytes.
struct Utf8Prefix {
  size_t bytes = 0;        // of the character, or 1 for a byte that begins none
  bool valid = false;      // a whole character (Unicode 15, table 3-7: no surrogates, no overlong)
  bool unfinished = false; // the beginning of one, cut off by the end of the text
};

// REQUIRES: text is not empty.
Utf8Prefix utf8_prefix(std::string_view text);

// Every byte that belongs to no valid character becomes U+FFFD.
std::string repair_utf8(std::string_view text);

}  // namespace gsa
