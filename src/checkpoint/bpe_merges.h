#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace gsa {

// The merges of a BPE tokenizer by rank, and what they make of one text alone.
//
// Why this is enough to turn ranks into scores of sentencepiece, which merges any two neighbours
// that make a piece: what lies between two borders that no merge crosses is merged as if it stood
// alone. So where two neighbours make the text of a piece P, they are the last two parts of P
// merged alone, and P has one rank, that of its last merge. If P alone does not end as P, no text
// does: P must never be made (kUnused pieces, which sentencepiece takes apart again in the end).
class BpeMerges {
 public:
  // `vocabulary`: piece -> id. It must outlive this.
  explicit BpeMerges(const std::unordered_map<std::string, int32_t>& vocabulary)
      : vocabulary_(vocabulary) {}

  // The next rank. False where a part or the whole is not in the vocabulary, or the merge is there.
  bool add(const std::string& left, const std::string& right);

  size_t size() const { return merges_.size(); }

  // The rank of the merge that makes the text of a vocabulary piece of more than one character, if
  // its text alone becomes that piece.
  std::optional<int32_t> rank_of(const std::string& piece) const;

 private:
  struct Merge {
    int32_t rank, id;
  };

  const std::unordered_map<std::string, int32_t>& vocabulary_;
  std::unordered_map<uint64_t, Merge> merges_;  // by the ids of both parts
};

}  // namespace gsa
