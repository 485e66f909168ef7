#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

namespace gsa {

StopStrings::StopStrings(const std::vector<std::string>& stops) {
  for (const std::string& text : stops) {
    if (text.empty()) continue;
    Stop stop{text, {0}};
    for (size_t i = 1; i < text.size(); ++i) {
      stop.border.push_back(advance(stop, stop.border.back(), text[i]));
    }
    stops_.push_back(std::move(stop));
  }
}

size_t StopStrings::advance(const Stop& stop, size_t matched, char byte) {
  while (matched > 0 && stop.text[matched] != byte) matched = stop.border[matched - 1];
  return stop.text[matched] == byte ? matched + 1 : 0;
}

std::string StopStrings::push(std::string_view text) {
  if (stopped_) return "";
  size_t hold = 0;  // bytes at the end that may begin a stop string
  for (char byte : text) {
    held_ += byte;
    hold = 0;
    size_t complete = 0;
    for (Stop& stop : stops_) {
      stop.matched = advance(stop, stop.matched, byte);
      hold = std::max(hold, stop.matched);
      if (stop.matched == stop.text.size()) complete = std::max(complete, stop.matched);
    }
    if (complete > 0) {
      stopped_ = true;
      held_.resize(held_.size() - complete);
      return std::exchange(held_, "");
    }
  }
  if (text.empty()) return "";
  std::string shown = held_.substr(0, held_.size() - hold);
  held_.erase(0, shown.size());
  return shown;
}

std::string StopStrings::finish() { return std::exchange(held_, ""); }

}  // namespace gsa
