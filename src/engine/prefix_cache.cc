#include "engine/prefix_cache.h"

#include <algorithm>

namespace gsa {
namespace {

// A junction saves little where hardly any tokens are shared.
constexpr int64_t kMinJunction = 16;

int64_t bytes_of(const Snapshot& s) {
  return static_cast<int64_t>(s.tokens.size() * sizeof(int32_t) + s.state.size() * sizeof(float) +
                              s.logits.size() * sizeof(float));
}

int64_t shared_tokens(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

PrefixCache::Lookup PrefixCache::find(std::span<const int32_t> prompt) {
  Lookup result;
  auto best = entries_.end();
  int64_t hit = 0, junction = 0;
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    const std::vector<int32_t>& tokens = (*it)->tokens;
    const int64_t shared = shared_tokens(prompt, tokens);
    if (shared == static_cast<int64_t>(tokens.size())) {
      if (shared > hit) {
        hit = shared;
        best = it;
      }
    } else {
      junction = std::max(junction, shared);
    }
  }
  if (best == entries_.end()) {
    ++counters_.misses;
  } else {
    ++counters_.hits;
    counters_.hit_tokens += hit;
    entries_.splice(entries_.begin(), entries_, best);
    result.hit = entries_.front();
  }
  if (junction - hit >= kMinJunction) result.junction = junction;
  return result;
}

bool PrefixCache::touch(std::span<const int32_t> tokens) {
  const auto it = std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) {
    return std::ranges::equal(entry->tokens, tokens);
  });
  if (it == entries_.end()) return false;
  entries_.splice(entries_.begin(), entries_, it);
  return true;
}

void PrefixCache::insert(std::shared_ptr<const Snapshot> snapshot) {
  const int64_t bytes = bytes_of(*snapshot);
  if (bytes > budget_ || touch(snapshot->tokens)) return;
  while (bytes_ + bytes > budget_) {
    bytes_ -= bytes_of(*entries_.back());
    entries_.pop_back();
    ++counters_.evictions;
  }
  bytes_ += bytes;
  entries_.push_front(std::move(snapshot));
}

}  // namespace gsa
