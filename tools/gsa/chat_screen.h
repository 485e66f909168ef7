#pragma once

#include <string>
#include <string_view>

namespace gsa {

// What a chat shows. On a terminal notes stand between the answers, in colour unless NO_COLOR or
// TERM=dumb forbids it; where standard output is no terminal it carries the answers alone, and
// notes go to standard error.
class ChatScreen {
 public:
  ChatScreen();

  bool terminal() const { return terminal_; }
  bool colour() const { return colour_; }

  // Columns, as they are now; 80 where nobody knows.
  int width() const;

  // The pieces of an answer as they come, then its end. Blanks and newlines around it are left out.
  // On a terminal control characters become U+FFFD: a model must not move the cursor.
  void stream(std::string_view text);
  void end_answer();

  // What was asked for (help, statistics), as it stands.
  void print(const std::string& text);

  // A remark of the program, filled up to the width.
  void note(const std::string& text);

  // One line. In a pipe it has the form of the program's errors.
  void error(const std::string& text);

 private:
  std::string styled(const char* style, const std::string& text) const;

  bool terminal_;
  bool colour_;
  bool begun_ = false;  // something of the answer is shown
  std::string held_;    // blanks that are shown if more follows
};

// Breaks lines at blanks where they are longer than `width`; what follows a break is indented.
std::string wrap(const std::string& text, int width, int indent = 0);

// While one lives, what is typed does not show: it would stand in the middle of an answer. It is
// not lost.
class EchoOff {
 public:
  EchoOff();
  ~EchoOff();
  EchoOff(const EchoOff&) = delete;
  EchoOff& operator=(const EchoOff&) = delete;

 private:
  bool off_ = false;
};

}  // namespace gsa
