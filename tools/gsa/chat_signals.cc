#include "tools/gsa/chat_signals.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "kernels/error.h"

namespace gsa {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP, SIGWINCH, SIGCONT};

// A signal handler has nothing but globals.
std::atomic<bool> interrupt_note, terminate_note, resize_note, continue_note;
static_assert(std::atomic<bool>::is_always_lock_free);
int ends[2] = {-1, -1};
struct sigaction before[std::size(kSignals)];

void on_signal(int signal) {
  const int error = errno;
  if (signal == SIGINT) interrupt_note = true;
  if (signal == SIGTERM || signal == SIGHUP) terminate_note = true;
  if (signal == SIGWINCH) resize_note = true;
  if (signal == SIGCONT) continue_note = true;
  [[maybe_unused]] const ssize_t written = ::write(ends[1], "", 1);
  errno = error;
}

bool take(std::atomic<bool>& note) { return note.exchange(false); }

}  // namespace

ChatSignals::ChatSignals() {
  for (auto* note : {&interrupt_note, &terminate_note, &resize_note, &continue_note}) *note = false;
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) throw Error("no pipe: {}", std::strerror(errno));
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &before[i]);
}

ChatSignals::~ChatSignals() {
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &before[i], nullptr);
  for (int& end : ends) {
    ::close(end);
    end = -1;
  }
}

int ChatSignals::fd() const { return ends[0]; }

void ChatSignals::drain() {
  char bytes[64];
  while (::read(ends[0], bytes, sizeof(bytes)) > 0) continue;
}

bool ChatSignals::interrupted() const { return interrupt_note; }
bool ChatSignals::terminated() const { return terminate_note; }
bool ChatSignals::take_interrupt() { return take(interrupt_note); }
bool ChatSignals::take_resize() { return take(resize_note); }
bool ChatSignals::take_continue() { return take(continue_note); }

}  // namespace gsa
