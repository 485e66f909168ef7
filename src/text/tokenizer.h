#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "text/chat_template.h"

namespace gsa {

// A sentencepiece tokenizer with the BOS/EOS rules of its checkpoint. Immutable after
// construction; safe to use from several threads. All text it returns is valid UTF-8, except
// bytes() of a byte token.
class Tokenizer {
 public:
  // How a token takes part in decoding.
  enum class Kind : uint8_t {
    kText,     // stands for its piece
    kByte,     // stands for one byte; a run of them is read as UTF-8
    kUnknown,  // stands for the model's sign of something unknown, " ⁇ " by default
    kControl,  // BOS, EOS, ...: no text
  };

  // What decoding does with the blank that a piece has in front while there is no text yet, where
  // encoding put one before the first word.
  enum class LeadingBlank : uint8_t {
    kKeep,
    kDropFirst,
    kDropEvery,  // of every piece until there is text
  };

  // Throws gsa::Error where the checkpoint has no tokenizer (saying that token ids can be given
  // instead), it does not parse, or it has more pieces than the model's vocabulary.
  explicit Tokenizer(const Checkpoint& checkpoint);

  // From a serialised sentencepiece model; `name` stands for it in errors. BOS is never added where
  // `bos_id` is -1; EOS is the one of the sentencepiece model.
  Tokenizer(std::string_view model, const TokenizerRules& rules, int64_t bos_id,
            const std::string& name);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  int64_t size() const;

  // Ids of UTF-8 text, BOS in front (EOS behind) where the rules say so. Text never becomes a
  // control token: "<s>" is three characters. Bytes that are no UTF-8 are read as U+FFFD.
  std::vector<int32_t> encode(std::string_view text) const;

  // Ids of the text alone.
  std::vector<int32_t> encode_plain(std::string_view text) const;

  // Ids of a rendered chat prompt, with no BOS but the template's own. In the template's text the
  // control tokens and user-defined pieces of the model become their ids; content never becomes
  // one, however it is spelled, except user-defined pieces of white space alone, such as "\n\n".
  // What stands between two special tokens is encoded as one text, so a border of pieces does not
  // show in the ids.
  //
  // Blanks as Hugging Face's Llama tokenizer puts them (legacy=false): the first word of the prompt
  // gets a blank in front, where the model adds one at all, and text after a special token gets
  // none; with rules.blank_after_special (legacy=true) that gets one too.
  std::vector<int32_t> encode_prompt(std::span<const PromptPiece> prompt) const;

  // Text of the ids, what StreamDecoder gives in pieces; sentencepiece's own decoding. Control
  // tokens (BOS, EOS, ...) give nothing, byte tokens their bytes, invalid UTF-8 becomes U+FFFD. Ids
  // outside the vocabulary of pieces give nothing.
  std::string decode(const std::vector<int32_t>& ids) const;

  // The piece as the model has it, "▁the" or "<0xE2>"; empty when id has none.
  std::string piece(int32_t id) const;

  // What the id adds to a running text: the byte of a byte token (not UTF-8 by itself), the piece
  // with U+2581 as a blank otherwise, nothing for control tokens.
  std::string bytes(int32_t id) const;

  // kControl for ids outside the vocabulary of pieces.
  Kind kind(int32_t id) const;

  LeadingBlank leading_blank() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gsa
