#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/snapshot.h"

namespace gsa {

// Snapshots of token prefixes, the least recently used out first, within a budget of bytes. They
// hang in a radix tree, so that finding one costs the tokens of the prompt, however many there are.
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
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  bool enabled() const { return budget_ > 0; }
  Lookup find(std::span<const int32_t> prompt);

  // True if a snapshot of exactly these tokens is kept; counts as a use of it.
  bool touch(std::span<const int32_t> tokens);

  // Keeps it, unless it alone exceeds the budget or its tokens are there already.
  // REQUIRES: at least one token.
  void insert(std::shared_ptr<const Snapshot> snapshot);

  int64_t bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  const Counters& counters() const { return counters_; }

 private:
  struct Node;
  struct Entry {
    std::shared_ptr<const Snapshot> snapshot;
    Node* node;
  };
  using Entries = std::list<Entry>;  // most recently used first

  // A point in the tree where a snapshot is, or where prefixes part.
  struct Node {
    Node* parent = nullptr;
    std::vector<int32_t> edge;                          // tokens that lead here from the parent
    std::map<int32_t, std::unique_ptr<Node>> children;  // by the first token of their edge
    std::optional<Entries::iterator> entry;
  };

  // How far tokens lead into the tree.
  struct Path {
    Node* node;              // the last one reached
    Node* onward = nullptr;  // its child whose edge is followed for `into` tokens, if any
    int64_t into = 0;
    int64_t shared = 0;   // tokens followed in all
    Node* hit = nullptr;  // the last node with a snapshot
    int64_t hit_tokens = 0;
  };

  Path follow(std::span<const int32_t> tokens);
  Node* split(Node* child, int64_t into);
  void use(Node* node);
  void evict_last();

  int64_t budget_;
  int64_t bytes_ = 0;
  Entries entries_;
  Node root_;
  Counters counters_;
};

}  // namespace gsa
