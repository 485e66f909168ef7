#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace gsa {

// A sentencepiece tokenizer with the BOS/EOS rules of its checkpoint. Immutable after
// construction; safe to use from several threads.
class Tokenizer {
 public:
  // Throws gsa::Error where the checkpoint has no tokenizer (saying that token ids can be given
  // instead), it does not parse, or it has more pieces than the model's vocabulary.
  explicit Tokenizer(const Checkpoint& checkpoint);

  // From a serialised sentencepiece model; `name` stands for it in errors.
  Tokenizer(std::string_view model, const TokenizerRules& rules, int64_t bos_id,
            const std::string& name);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  int64_t size() const;

  // Ids of UTF-8 text, BOS in front (EOS behind) where the rules say so.
  std::vector<int32_t> encode(std::string_view text) const;

  // Ids of the text alone.
  std::vector<int32_t> encode_plain(std::string_view text) const;

  // Text of the ids; control tokens (BOS, EOS, ...) give nothing, byte tokens their bytes, invalid
  // UTF-8 becomes U+FFFD. Ids outside the vocabulary of pieces give nothing.
  std::string decode(const std::vector<int32_t>& ids) const;

  // The raw piece, "▁the" or "<0xE2>"; empty when id has none.
  std::string piece(int32_t id) const;

  // What the id adds to a running text, before UTF-8 is repaired: bytes of a byte token, the piece
  // with U+2581 as a blank otherwise, nothing for control tokens.
  std::string bytes(int32_t id) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gsa
