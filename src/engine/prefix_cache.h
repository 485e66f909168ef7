#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>

#include "model/snapshot.h"

namespace gsa {

// Snapshots of token prefixes, the least recently used out first, within a budget of bytes.
// Used by one thread at a time.
class PrefixCache {
 public:
  struct Lookup {
    std::shared_ptr<const Snapshot> hit;  // the longest cached prefix of the prompt, or null
    // Tokens that the prompt shares with some cached prefix beyond the hit: a snapshot there would
    // serve both. 0: none worth taking.
    int64_t junction = 0;
  };

  struct Counters {
    int64_t hits = 0;
    int64_t misses = 0;
    int64_t evictions = 0;
    int64_t hit_tokens = 0;
  };

  // budget 0: nothing is ever kept.
  explicit PrefixCache(int64_t budget_bytes) : budget_(budget_bytes) {}

  bool enabled() const { return budget_ > 0; }
  Lookup find(std::span<const int32_t> prompt);

  // True if a snapshot of exactly these tokens is kept; counts as a use of it.
  bool touch(std::span<const int32_t> tokens);

  // Keeps it, unless it alone exceeds the budget or its tokens are there already.
  void insert(std::shared_ptr<const Snapshot> snapshot);

  int64_t bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  const Counters& counters() const { return counters_; }

 private:
  using Entries = std::list<std::shared_ptr<const Snapshot>>;  // most recently used first

  int64_t budget_;
  int64_t bytes_ = 0;
  Entries entries_;
  Counters counters_;
};

}  // namespace gsa
