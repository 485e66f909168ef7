#pragma once

namespace gsa {

// While one lives, signals only leave a note: Ctrl-C (SIGINT), a request to end (SIGTERM, SIGHUP),
// a new window size (SIGWINCH) and coming back to the foreground (SIGCONT). One at a time.
class ChatSignals {
 public:
  ChatSignals();
  ~ChatSignals();
  ChatSignals(const ChatSignals&) = delete;
  ChatSignals& operator=(const ChatSignals&) = delete;

  // Readable while a note has come that no wait() saw.
  int fd() const;
  void drain();

  bool interrupted() const;
  bool terminated() const;
  bool take_interrupt();  // and forgets it
  bool take_resize();
  bool take_continue();
};

}  // namespace gsa
