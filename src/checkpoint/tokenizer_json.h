#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace gsa {

// A tokenizer.json as a sentencepiece model with the same ids.
struct ConvertedTokenizer {
  std::string model;  // serialised
  // What the post-processor puts around text.
  std::optional<int64_t> first_token, last_token;
  // TokenizerRules of the same names.
  bool blank_once = false;
  bool blank_after_special = false;
};

// Reads a tokenizer of the Llama and Mistral kind: BPE with byte fallback, blanks written as U+2581
// by a normalizer or by the Metaspace pre-tokenizer, added tokens. Throws gsa::Error naming `name`
// and the kind or the part where it is another kind (byte-level BPE, WordPiece, Unigram, ...) or
// does what a sentencepiece model cannot do with the same ids.
ConvertedTokenizer convert_tokenizer_json(std::string_view json, const std::string& name);

}  // namespace gsa
