#pragma once

#include <string>
#include <string_view>

#include "tools/gsa/chat_signals.h"

namespace gsa {

// What a user entered.
struct ChatInput {
  enum Kind {
    kText,
    kInterrupt,  // Ctrl-C
    kEnd,        // Ctrl-D, the end of the input, or a signal to end
  };
  Kind kind = kEnd;
  std::string text;       // may have several lines; bytes as they came
  bool was_empty = true;  // kInterrupt: nothing had been typed
  bool is_utf8 = true;    // false: the text has U+FFFD in place of what was no UTF-8
};

// Standard input by the byte, with signals.
class ByteSource {
 public:
  enum Special { kEnd = -1, kSignal = -2, kTimeout = -3 };

  // The signals must outlive it.
  explicit ByteSource(ChatSignals& signals) : signals_(signals) {}

  // The next byte, or one of Special. Waits for `timeout_ms` at most; -1: for ever.
  int next(int timeout_ms = -1);

  // The next next() gives this.
  void give_back(char byte);

  // Bytes that have come already.
  std::string_view waiting() const;

  ChatSignals& signals() const { return signals_; }

 private:
  int refill(int timeout_ms);

  ChatSignals& signals_;
  std::string buffer_;
  size_t at_ = 0;
};

// Where a chat's input comes from.
class InputSource {
 public:
  virtual ~InputSource() = default;
  virtual ChatInput read(const std::string& prompt) = 0;
};

// Lines as they come, for pipes and for terminals that cannot edit a line. A line that ends with a
// backslash goes on in the next. On a terminal lines that come together (pasted ones) are one
// input, unless they are commands.
class PlainInput : public InputSource {
 public:
  // Without `prompting` no prompt is printed, and lines that come together stay apart.
  PlainInput(ChatSignals& signals, bool prompting) : bytes_(signals), prompting_(prompting) {}

  ChatInput read(const std::string& prompt) override;

 private:
  ChatInput::Kind read_line(std::string& line);

  ByteSource bytes_;
  bool prompting_;
};

}  // namespace gsa
