#pragma once

namespace gsa {

// While one lives, Ctrl-C (SIGINT) and SIGTERM only set a flag; a second Ctrl-C ends the program at
// once. One at a time.
class InterruptGuard {
 public:
  InterruptGuard();
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  bool interrupted() const;
};

}  // namespace gsa
