#pragma once

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/temporary_folder.h"

extern char** environ;

namespace gsa::test {

// What a program left behind.
struct Outcome {
  int status = -1;  // its exit status; -1 where a signal ended it
  int signal = 0;   // that signal
  std::string out, err;
};

// `gsa` with these arguments, running beside the test until finish().
class Program {
 public:
  explicit Program(std::vector<std::string> arguments, const std::string& input = "",
                   const char* output = nullptr) {
    write_bytes(folder_ / "in", input);
    int ends[2] = {-1, -1};
    if (output == nullptr) {
      if (::pipe2(ends, O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
      out_ = ends[0];
    }
    arguments.insert(arguments.begin(), GSA_PROGRAM);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, (folder_ / "in").c_str(), O_RDONLY, 0);
    if (output == nullptr) {
      posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    } else {
      posix_spawn_file_actions_addopen(&actions, 1, output, O_WRONLY, 0);
    }
    posix_spawn_file_actions_addopen(&actions, 2, (folder_ / "err").c_str(), O_WRONLY | O_CREAT,
                                     0600);
    // A test may itself run where these are ignored; the program must not inherit that.
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t signals;
    sigemptyset(&signals);
    for (int signal : {SIGINT, SIGTERM, SIGPIPE}) sigaddset(&signals, signal);
    posix_spawnattr_setsigdefault(&attributes, &signals);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF);
    const int error = posix_spawn(&pid_, GSA_PROGRAM, &actions, &attributes, argv.data(), environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (ends[1] >= 0) ::close(ends[1]);
    if (error != 0) throw std::runtime_error(std::strerror(error));
  }

  ~Program() {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
    close_output();
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }

  // Waits until it has written `bytes` to its standard output in all, or has closed it.
  void await_output(size_t bytes) {
    char buffer[4096];
    while (out_ >= 0 && read_.size() < bytes) {
      const ssize_t n = ::read(out_, buffer, sizeof(buffer));
      if (n <= 0) return;
      read_.append(buffer, static_cast<size_t>(n));
    }
  }

  // Nobody reads its standard output any more.
  void close_output() {
    if (out_ >= 0) ::close(out_);
    out_ = -1;
  }

  void send(int signal) { ::kill(pid_, signal); }

  Outcome finish() {
    await_output(std::string::npos);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = -1;
    Outcome outcome;
    if (WIFEXITED(status)) outcome.status = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
    outcome.out = read_;
    outcome.err = read_bytes(folder_ / "err");
    return outcome;
  }

 private:
  TemporaryFolder folder_;
  pid_t pid_ = -1;
  int out_ = -1;
  std::string read_;
};

inline Outcome run(std::vector<std::string> arguments, const std::string& input = "") {
  return Program(std::move(arguments), input).finish();
}

// The same for what must succeed in silence but for its output, which is returned.
inline std::string output_of(std::vector<std::string> arguments, const std::string& input = "") {
  const Outcome outcome = run(std::move(arguments), input);
  if (outcome.status != 0) throw std::runtime_error("gsa failed: " + outcome.err);
  return outcome.out;
}

inline std::string tale() { return GSA_SOURCE_DIR "/models/tale-10m.safetensors"; }

}  // namespace gsa::test
