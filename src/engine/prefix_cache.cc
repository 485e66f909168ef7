#include "engine/prefix_cache.h"

#include <algorithm>
#include <cassert>
#include <utility>

namespace gsa {
namespace {

// A junction saves little where hardly any tokens are shared.
constexpr int64_t kMinJunction = 16;

// With its tokens once more, as edges of the tree.
int64_t bytes_of(const Snapshot& s) {
  return static_cast<int64_t>(2 * s.tokens.size() * sizeof(int32_t) +
                              (s.state.size() + s.logits.size()) * sizeof(float));
}

int64_t shared_tokens(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
}

}  // namespace

PrefixCache::Path PrefixCache::follow(std::span<const int32_t> tokens) {
  Path path{.node = &root_};
  while (path.shared < static_cast<int64_t>(tokens.size())) {
    const auto child = path.node->children.find(tokens[path.shared]);
    if (child == path.node->children.end()) break;
    const std::vector<int32_t>& edge = child->second->edge;
    const int64_t into = shared_tokens(tokens.subspan(path.shared), edge);
    path.shared += into;
    if (into < static_cast<int64_t>(edge.size())) {
      path.onward = child->second.get();
      path.into = into;
      break;
    }
    path.node = child->second.get();
    if (path.node->entry) {
      path.hit = path.node;
      path.hit_tokens = path.shared;
    }
  }
  return path;
}

PrefixCache::Lookup PrefixCache::find(std::span<const int32_t> prompt) {
  const Path path = follow(prompt);
  Lookup result;
  if (path.hit == nullptr) {
    ++counters_.misses;
  } else {
    ++counters_.hits;
    counters_.hit_tokens += path.hit_tokens;
    use(path.hit);
    result.hit = entries_.front().snapshot;
  }
  // Every way into the tree leads to a snapshot, so what was followed beyond the hit is shared.
  if (path.shared - path.hit_tokens >= kMinJunction) result.junction = path.shared;
  return result;
}

bool PrefixCache::touch(std::span<const int32_t> tokens) {
  const Path path = follow(tokens);
  if (path.hit == nullptr || path.hit_tokens != static_cast<int64_t>(tokens.size())) return false;
  use(path.hit);
  return true;
}

void PrefixCache::insert(std::shared_ptr<const Snapshot> snapshot) {
  const std::vector<int32_t>& tokens = snapshot->tokens;
  assert(!tokens.empty());
  const int64_t bytes = bytes_of(*snapshot);
  if (bytes > budget_ || touch(tokens)) return;
  while (bytes_ + bytes > budget_) evict_last();
  const Path path = follow(tokens);
  Node* node = path.onward == nullptr ? path.node : split(path.onward, path.into);
  if (path.shared < static_cast<int64_t>(tokens.size())) {
    auto leaf = std::make_unique<Node>();
    leaf->parent = node;
    leaf->edge.assign(tokens.begin() + path.shared, tokens.end());
    node = (node->children[leaf->edge[0]] = std::move(leaf)).get();
  }
  bytes_ += bytes;
  entries_.push_front({std::move(snapshot), node});
  node->entry = entries_.begin();
}

// Puts a node on the way to `child`, after `into` tokens of its edge; returns it.
PrefixCache::Node* PrefixCache::split(Node* child, int64_t into) {
  std::unique_ptr<Node>& place = child->parent->children.at(child->edge[0]);
  auto middle = std::make_unique<Node>();
  middle->parent = child->parent;
  middle->edge.assign(child->edge.begin(), child->edge.begin() + into);
  child->edge.erase(child->edge.begin(), child->edge.begin() + into);
  child->parent = middle.get();
  middle->children[child->edge[0]] = std::move(place);
  place = std::move(middle);
  return place.get();
}

void PrefixCache::use(Node* node) { entries_.splice(entries_.begin(), entries_, *node->entry); }

// Drops the least recently used snapshot, and the nodes that stood for it alone.
void PrefixCache::evict_last() {
  Node* node = entries_.back().node;
  bytes_ -= bytes_of(*entries_.back().snapshot);
  entries_.pop_back();
  ++counters_.evictions;
  node->entry.reset();
  if (node->children.empty()) {
    Node* parent = node->parent;
    parent->children.erase(parent->children.find(node->edge[0]));
    node = parent;
  }
  if (node == &root_ || node->entry || node->children.size() != 1) return;
  // A point where nothing parts any more: joins the edges before and behind it.
  std::unique_ptr<Node> child = std::move(node->children.begin()->second);
  child->edge.insert(child->edge.begin(), node->edge.begin(), node->edge.end());
  child->parent = node->parent;
  node->parent->children.at(node->edge[0]) = std::move(child);
}

}  // namespace gsa
