#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gsa {

// Cuts a stream of text at the first stop string. Nothing of a stop string is ever let through,
// and text is held only while it could still be the beginning of one.
class StopStrings {
 public:
  // Empty strings are ignored.
  explicit StopStrings(std::vector<std::string> stops);

  // Text that can be shown after this piece. Once stopped() is true, always empty.
  std::string push(std::string_view text);

  // What was held when the stream ends without a stop.
  std::string finish();

  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace gsa
