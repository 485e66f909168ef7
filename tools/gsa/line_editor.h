#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tools/gsa/chat_input.h"

namespace gsa {

// Where the lines typed before are kept: $XDG_STATE_HOME/gsa/chat_history, by default under
// ~/.local/state. Empty where neither it nor HOME is set.
std::string history_path();

// Lines edited on a terminal (libedit), with history, and ~/.editrc read. A line that ends with a
// backslash goes on in the next. A paste of several lines or of many bytes stands in the line as a
// short label and is put in its place when the line is entered. One at a time.
class LineEditor : public InputSource {
 public:
  struct Options {
    bool colour = false;
    std::string history;                   // a file; empty: none is kept
    std::vector<std::string> completions;  // of a line's first word, by the tabulator key
  };

  // The signals must outlive it.
  LineEditor(ChatSignals& signals, Options options);
  ~LineEditor() override;

  ChatInput read(const std::string& prompt) override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gsa
