#pragma once

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace gsa::test {

// `gsa` with these arguments on a terminal of its own.
class Terminal {
 public:
  // Set in the environment besides what the test has; TERM is xterm unless given.
  using Environment = std::map<std::string, std::string>;

  // What libedit's caller sends before it reads a line.
  static constexpr const char* kReady = "\033[?2004h";

  Terminal(std::vector<std::string> arguments, Environment environment, int columns = 80) {
    environment.try_emplace("TERM", "xterm");
    winsize size = {};
    size.ws_row = 24;
    size.ws_col = static_cast<unsigned short>(columns);
    arguments.insert(arguments.begin(), GSA_PROGRAM);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::forkpty(&fd_, nullptr, nullptr, &size);
    if (pid_ < 0) throw std::runtime_error("no terminal");
    if (pid_ == 0) {
      ::unsetenv("NO_COLOR");
      for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }

  ~Terminal() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    if (fd_ >= 0) ::close(fd_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  void send(std::string_view keys) {
    while (!keys.empty()) {
      pollfd fd = {fd_, POLLIN | POLLOUT, 0};
      ::poll(&fd, 1, 1000);
      if ((fd.revents & POLLIN) != 0) take();
      if ((fd.revents & POLLOUT) == 0) continue;
      const ssize_t n = ::write(fd_, keys.data(), std::min<size_t>(keys.size(), 512));
      if (n <= 0) throw std::runtime_error("the terminal is gone");
      keys.remove_prefix(static_cast<size_t>(n));
    }
  }

  // What came since the last call of this kind, up to and with `expected`. Throws where it does not
  // come, with what did.
  std::string until(const std::string& expected) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    size_t at;
    while ((at = output_.find(expected, seen_)) == output_.npos) {
      pollfd fd = {fd_, POLLIN, 0};
      const bool late = std::chrono::steady_clock::now() > deadline;
      if (late || (::poll(&fd, 1, 1000) > 0 && !take())) {
        throw std::runtime_error("expected \"" + expected + "\" after \"" + output_.substr(seen_) +
                                 "\"");
      }
    }
    const size_t begin = seen_;
    seen_ = at + expected.size();
    return output_.substr(begin, seen_ - begin);
  }

  // Enters a line at a prompt and returns what is shown until the next prompt, less the line.
  std::string enter(const std::string& line) {
    send(line + "\r");
    const std::string shown = until(kReady);
    const size_t end = shown.find("\033[?2004l");
    if (end == shown.npos) throw std::runtime_error("the line was not taken: " + shown);
    return shown.substr(end + 8, shown.size() - end - 16);
  }

  // Waits for the end; the exit status, or -1 where a signal ended it.
  int finish() {
    while (take()) continue;
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  // Lines are read as they were before the program ran.
  bool is_cooked() const {
    termios mode;
    return ::tcgetattr(fd_, &mode) == 0 && (mode.c_lflag & (ECHO | ICANON)) == (ECHO | ICANON);
  }

  const std::string& output() const { return output_; }
  pid_t pid() const { return pid_; }

 private:
  bool take() {
    char buffer[4096];
    const ssize_t n = ::read(fd_, buffer, sizeof(buffer));
    if (n <= 0) return false;
    output_.append(buffer, static_cast<size_t>(n));
    return true;
  }

  int fd_ = -1;
  pid_t pid_ = -1;
  std::string output_;
  size_t seen_ = 0;
};

}  // namespace gsa::test
