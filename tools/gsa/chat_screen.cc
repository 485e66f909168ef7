#include "tools/gsa/chat_screen.h"

#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "text/utf8.h"

namespace gsa {
namespace {

constexpr const char* kDim = "\033[2m";
constexpr const char* kRed = "\033[31m";
constexpr const char* kPlain = "\033[0m";

// A terminal that knows what control sequences are.
bool capable() {
  const char* name = std::getenv("TERM");
  return name != nullptr && *name != '\0' && std::strcmp(name, "dumb") != 0;
}

bool set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

std::string without_control(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    // U+0080 to U+009F are control characters too, of two bytes.
    const bool wide =
        c == 0xC2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xA0;
    if (wide || (c < ' ' && c != '\n' && c != '\t') || c == 0x7F) {
      out += kReplacement;
      i += wide;
    } else {
      out += text[i];
    }
  }
  return out;
}

// Characters, which are taken to be one column wide.
int columns(std::string_view text) {
  return static_cast<int>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

ChatScreen::ChatScreen()
    : terminal_(::isatty(STDOUT_FILENO) == 1),
      colour_(terminal_ && capable() && !set("NO_COLOR")) {}

int ChatScreen::width() const {
  winsize size = {};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  return 80;
}

void ChatScreen::stream(std::string_view text) {
  const std::string safe = terminal_ ? without_control(text) : std::string(text);
  held_ += safe;
  const size_t first = begun_ ? 0 : held_.find_first_not_of(" \n");
  const size_t last = held_.find_last_not_of(" \n");
  if (last == held_.npos) return;
  begun_ = true;
  std::fwrite(held_.data() + first, 1, last + 1 - first, stdout);
  std::fflush(stdout);
  held_.erase(0, last + 1);
}

void ChatScreen::end_answer() {
  held_.clear();
  begun_ = false;
  std::fputc('\n', stdout);
  std::fflush(stdout);
}

std::string ChatScreen::styled(const char* style, const std::string& text) const {
  return colour_ ? style + text + kPlain : text;
}

void ChatScreen::print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

void ChatScreen::note(const std::string& text) {
  std::FILE* out = terminal_ ? stdout : stderr;
  const std::string shown = without_control(text);
  std::fputs((styled(kDim, terminal_ ? wrap(shown, width()) : shown) + '\n').c_str(), out);
  std::fflush(out);
}

void ChatScreen::error(const std::string& text) {
  const std::string shown = without_control(text);
  if (terminal_) {
    std::fputs((styled(kRed, "error: " + shown) + '\n').c_str(), stdout);
    std::fflush(stdout);
  } else {
    std::fprintf(stderr, "gsa: error: %s\n", shown.c_str());
  }
}

std::string wrap(const std::string& text, int width, int indent) {
  std::string out;
  int column = 0;
  size_t at = 0;
  while (at < text.size()) {
    const size_t end = std::min(text.find_first_of(" \n", at), text.size());
    const std::string word = text.substr(at, end - at);
    if (column > indent && column + columns(word) >= width) {
      while (out.ends_with(' ')) out.pop_back();
      out += '\n' + std::string(indent, ' ');
      column = indent;
    }
    out += word;
    column += columns(word);
    at = end;
    if (at == text.size()) break;
    out += text[at];
    column = text[at] == '\n' ? 0 : column + 1;
    ++at;
  }
  return out;
}

EchoOff::EchoOff() {
  termios mode;
  if (::tcgetattr(STDIN_FILENO, &mode) != 0 || (mode.c_lflag & ECHO) == 0) return;
  mode.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  off_ = ::tcsetattr(STDIN_FILENO, TCSANOW, &mode) == 0;
}

EchoOff::~EchoOff() {
  termios mode;
  if (!off_ || ::tcgetattr(STDIN_FILENO, &mode) != 0) return;
  mode.c_lflag |= ECHO;
  ::tcsetattr(STDIN_FILENO, TCSANOW, &mode);
}

}  // namespace gsa
