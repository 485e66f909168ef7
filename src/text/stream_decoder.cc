#include "text/stream_decoder.h"

#include "text/utf8.h"

namespace gsa {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool continues)
    : tokenizer_(&tokenizer),
      at_start_(!continues && tokenizer.leading_blank() != Tokenizer::LeadingBlank::kKeep) {}

std::string StreamDecoder::push(int32_t id) {
  std::string text;
  if (tokenizer_->kind(id) == Tokenizer::Kind::kByte) {
    held_ += tokenizer_->bytes(id);
    text = take_utf8(held_, /*complete=*/false);
  } else {
    text = finish();
    text += text_of(id);
  }
  if (!text.empty()) at_start_ = false;
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = take_utf8(held_, /*complete=*/true);
  if (!text.empty()) at_start_ = false;
  return text;
}

std::string StreamDecoder::text_of(int32_t id) {
  std::string text = tokenizer_->bytes(id);
  if (at_start_ && tokenizer_->kind(id) == Tokenizer::Kind::kText &&
      tokenizer_->piece(id).starts_with(kBlankSymbol)) {
    text.erase(0, 1);
    at_start_ = tokenizer_->leading_blank() == Tokenizer::LeadingBlank::kDropEvery;
  }
  return text;
}

}  // namespace gsa
