#include "text/stream_decoder.h"

#include "text/utf8.h"

namespace gsa {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool continues)
    : tokenizer_(&tokenizer), at_start_(!continues) {}

std::string StreamDecoder::push(int32_t id) {
  std::string bytes = tokenizer_->bytes(id);
  if (at_start_ && !bytes.empty()) {
    at_start_ = false;
    if (bytes.starts_with(' ')) bytes.erase(0, 1);
  }
  held_ += bytes;
  // Everything up to the beginning of an unfinished character at the very end is certain.
  size_t certain = 0;
  while (certain < held_.size()) {
    const Utf8Prefix prefix = utf8_prefix(std::string_view(held_).substr(certain));
    if (prefix.unfinished) break;
    certain += prefix.bytes;
  }
  const std::string text = repair_utf8(std::string_view(held_).substr(0, certain));
  held_.erase(0, certain);
  return text;
}

std::string StreamDecoder::finish() {
  const std::string text = repair_utf8(held_);
  held_.clear();
  return text;
}

}  // namespace gsa
