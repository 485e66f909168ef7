#pragma once

#include <cstdint>
#include <string>

#include "text/tokenizer.h"

namespace gsa {

// Turns ids into text as they come. The concatenation of all push() results and finish() equals
// Tokenizer::decode of the whole; every result is valid UTF-8, never half a character.
class StreamDecoder {
 public:
  // With `continues`, the ids go on from earlier text: the blank that sentencepiece puts before
  // the first word is kept. The tokenizer must outlive the decoder.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool continues = false);

  // Text that became certain with this id; often empty inside a character of several byte tokens.
  std::string push(int32_t id);

  // What is still held: the bytes of an unfinished character become U+FFFD.
  std::string finish();

 private:
  std::string text_of(int32_t id);

  const Tokenizer* tokenizer_;
  bool at_start_;     // a leading blank is still to be dropped
  std::string held_;  // the bytes of an unfinished character
};

}  // namespace gsa
