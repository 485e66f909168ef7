#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gsa {

// Cuts a stream of text at the first stop string: the first to be complete, and of several that are
// complete with the same byte the longest. Nothing of a stop string is ever let through, and text
// is held only while it could still be the beginning of one. How the text is cut into pieces makes
// no difference. Whole characters in give whole characters out where the stop strings are UTF-8.
class StopStrings {
 public:
  // Empty strings are ignored.
  explicit StopStrings(const std::vector<std::string>& stops);

  // Text that can be shown after this piece. Once stopped() is true, always empty.
  std::string push(std::string_view text);

  // What was held when the stream ends without a stop.
  std::string finish();

  bool stopped() const { return stopped_; }

 private:
  // One string and how much of its beginning the text ends with (Knuth, Morris, Pratt).
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // [i]: longest proper border of the first i + 1 bytes
    size_t matched = 0;
  };

  static size_t advance(const Stop& stop, size_t matched, char byte);

  std::vector<Stop> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace gsa
