#include "tools/gsa/chat_input.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace gsa {

int ByteSource::next(int timeout_ms) {
  if (at_ == buffer_.size()) {
    const int special = refill(timeout_ms);
    if (special < 0) return special;
  }
  return static_cast<unsigned char>(buffer_[at_++]);
}

void ByteSource::give_back(char byte) {
  if (at_ == 0) {
    buffer_.insert(buffer_.begin(), byte);
  } else {
    buffer_[--at_] = byte;
  }
}

std::string_view ByteSource::waiting() const { return std::string_view(buffer_).substr(at_); }

// 0, or what there is in place of bytes.
int ByteSource::refill(int timeout_ms) {
  pollfd fds[] = {{STDIN_FILENO, POLLIN, 0}, {signals_.fd(), POLLIN, 0}};
  const int ready = ::poll(fds, 2, timeout_ms);
  if (ready < 0 && errno != EINTR) return kEnd;
  if (ready == 0) return kTimeout;
  if (ready < 0 || fds[1].revents != 0) {
    signals_.drain();
    return kSignal;
  }
  constexpr size_t kChunk = 1 << 16;
  buffer_.resize(kChunk);
  at_ = 0;
  const ssize_t n = ::read(STDIN_FILENO, buffer_.data(), kChunk);
  buffer_.resize(n > 0 ? static_cast<size_t>(n) : 0);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return kSignal;
  return n > 0 ? 0 : kEnd;
}

ChatInput::Kind PlainInput::read_line(std::string& line) {
  for (;;) {
    const int byte = bytes_.next();
    if (byte == '\n') break;
    if (byte == ByteSource::kSignal) {
      if (bytes_.signals().terminated()) return ChatInput::kEnd;
      if (bytes_.signals().interrupted()) return ChatInput::kInterrupt;
      continue;
    }
    if (byte == ByteSource::kEnd) {
      if (line.empty()) return ChatInput::kEnd;
      break;
    }
    line += static_cast<char>(byte);
  }
  if (line.ends_with('\r')) line.pop_back();
  return ChatInput::kText;
}

ChatInput PlainInput::read(const std::string& prompt) {
  constexpr int kTogetherMs = 10;
  ChatInput input;
  std::string next_prompt = prompt;
  for (;;) {
    if (prompting_ && !next_prompt.empty()) {
      std::fputs(next_prompt.c_str(), stderr);
      std::fflush(stderr);
    }
    std::string line;
    input.kind = read_line(line);
    if (input.kind == ChatInput::kInterrupt) {
      bytes_.signals().take_interrupt();
      input.was_empty = input.text.empty();
      return input;
    }
    if (input.kind == ChatInput::kEnd) {
      if (!input.text.empty()) input.kind = ChatInput::kText;
      return input;
    }
    const bool goes_on = line.ends_with('\\');
    if (goes_on) line.back() = '\n';
    input.text += line;
    next_prompt = ". ";
    if (goes_on) continue;
    if (!prompting_ || input.text.starts_with('/')) return input;
    const int waiting = bytes_.next(kTogetherMs);
    if (waiting < 0) return input;
    bytes_.give_back(static_cast<char>(waiting));
    if (waiting == '/') return input;
    input.text += '\n';
    next_prompt.clear();
  }
}

}  // namespace gsa
