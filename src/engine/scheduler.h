#pragma once

#include <cstdint>
#include <map>
#include <vector>

namespace gsa {

using RequestId = uint64_t;

// Decides what each step computes. Knows counts of tokens and states, touches no tensor.
//
// A request waits, is admitted once enough states are free, is prefilled in chunks, and then
// decodes one token a step until it is removed. Higher priorities go first, equal ones in the
// order they came; a request at the head that needs more states than are free holds those behind
// it, so that it cannot starve.
class Scheduler {
 public:
  struct Options {
    int64_t step_tokens = 512;   // budget of a step
    int64_t min_prefill = 32;    // of which prefill gets at least this, however many decode
    int64_t queue_limit = 1024;  // requests that may wait
  };

  struct Chunk {
    RequestId id = 0;
    int64_t count = 0;
    bool last = false;  // the prompt is complete with it
  };

  struct Plan {
    std::vector<RequestId> decode;
    std::vector<Chunk> prefill;
    bool empty() const { return decode.empty() && prefill.empty(); }
  };

  explicit Scheduler(const Options& options) : options_(options) {}

  // Queues a request; false when the queue is full. REQUIRES: an unused id, states >= 1.
  bool submit(RequestId id, int32_t priority, int64_t states);

  // The requests that start now, given the free states; each leaves the queue and counts as
  // running. The caller then calls start() for it.
  std::vector<RequestId> admit(int64_t free_states);

  // An admitted request has this many prompt tokens to go (0: it decodes at once). A chunk ends
  // after `cut` of them, where a snapshot is wanted (0: no matter).
  void start(RequestId id, int64_t prompt_tokens, int64_t cut = 0);

  // The next step. Prefilled requests decode from the following plan on.
  Plan plan();

  // Whether the next step would decode and do nothing else: no prompt is left to read, and nobody
  // waits whom the free states admit.
  bool only_decodes(int64_t free_states) const;

  // Forgets a request, wherever it stands.
  void remove(RequestId id);

  int64_t waiting() const { return static_cast<int64_t>(queue_.size()); }
  int64_t running() const { return static_cast<int64_t>(running_.size()); }

 private:
  // Sorted by falling priority, then by arrival.
  using Key = std::pair<int64_t, RequestId>;

  struct Waiting {
    RequestId id;
    int64_t states;
  };
  struct Running {
    RequestId id;
    int64_t states;
    int64_t prompt_tokens = 0;  // to go
    int64_t cut = 0;
  };

  Options options_;
  uint64_t arrivals_ = 0;
  std::map<Key, Waiting> queue_;
  std::map<Key, Running> running_;
  std::map<RequestId, Key> keys_;
};

}  // namespace gsa
