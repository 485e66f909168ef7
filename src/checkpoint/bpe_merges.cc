#include "checkpoint/bpe_merges.h"

namespace gsa {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

bool BpeMerges::add(const std::string& left, const std::string& right) {
  const auto a = vocabulary_.find(left), b = vocabulary_.find(right),
             whole = vocabulary_.find(left + right);
  if (a == vocabulary_.end() || b == vocabulary_.end() || whole == vocabulary_.end()) return false;
  const Merge merge{static_cast<int32_t>(merges_.size()), whole->second};
  return merges_.emplace(pair_key(a->second, b->second), merge).second;
}

std::optional<int32_t> BpeMerges::rank_of(const std::string& piece) const {
  std::vector<int32_t> ids;
  for (size_t begin = 0; begin < piece.size();) {
    size_t end = begin + 1;
    while (end < piece.size() && (static_cast<uint8_t>(piece[end]) & 0xC0) == 0x80) ++end;
    const auto character = vocabulary_.find(piece.substr(begin, end - begin));
    if (character == vocabulary_.end()) return std::nullopt;  // it becomes bytes
    ids.push_back(character->second);
    begin = end;
  }
  std::optional<int32_t> last;
  while (ids.size() > 1) {
    const Merge* best = nullptr;
    size_t at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto merge = merges_.find(pair_key(ids[i], ids[i + 1]));
      if (merge != merges_.end() && (best == nullptr || merge->second.rank < best->rank)) {
        best = &merge->second;
        at = i;
      }
    }
    if (best == nullptr) return std::nullopt;
    ids[at] = best->id;
    ids.erase(ids.begin() + static_cast<long>(at) + 1);
    last = best->rank;
  }
  return last;
}

}  // namespace gsa
