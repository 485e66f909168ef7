#include "text/tokenizer.h"

#include <sentencepiece_processor.h>

#include <utility>

#include "kernels/error.h"
#include "text/utf8.h"

namespace gsa {
namespace {

constexpr std::string_view kBlank = "\xe2\x96\x81";  // U+2581, sentencepiece's blank

}  // namespace

struct Tokenizer::Impl {
  sentencepiece::SentencePieceProcessor processor;
  TokenizerRules rules;
  int64_t bos_id = -1;
  int64_t eos_id = -1;
};

Tokenizer::Tokenizer(const Checkpoint& checkpoint)
    : Tokenizer(checkpoint.tokenizer(), checkpoint.tokenizer_rules(),
                checkpoint.config().bos_token_id, checkpoint.name()) {
  const GsaConfig& config = checkpoint.config();
  if (!config.eos_token_ids.empty()) impl_->eos_id = config.eos_token_ids.front();
  if (size() > config.vocab_size) {
    throw Error("{}: the tokenizer has {} pieces, the model's vocabulary {}", checkpoint.name(),
                size(), config.vocab_size);
  }
}

Tokenizer::Tokenizer(std::string_view model, const TokenizerRules& rules, int64_t bos_id,
                     const std::string& name)
    : impl_(std::make_unique<Impl>()) {
  if (model.empty()) {
    throw Error("{}: has no tokenizer; give token ids instead of text", name);
  }
  const auto status = impl_->processor.LoadFromSerializedProto({model.data(), model.size()});
  if (!status.ok()) throw Error("{}: the tokenizer is no valid sentencepiece model", name);
  impl_->rules = rules;
  impl_->bos_id = bos_id;
  impl_->eos_id = impl_->processor.eos_id();
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

int64_t Tokenizer::size() const { return impl_->processor.GetPieceSize(); }

std::vector<int32_t> Tokenizer::encode_plain(std::string_view text) const {
  std::vector<int> ids;
  const auto status = impl_->processor.Encode({text.data(), text.size()}, &ids);
  if (!status.ok()) throw Error("the text cannot be tokenised: {}", status.ToString());
  return {ids.begin(), ids.end()};
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids = encode_plain(text);
  if (impl_->rules.add_bos && impl_->bos_id >= 0) {
    ids.insert(ids.begin(), static_cast<int32_t>(impl_->bos_id));
  }
  if (impl_->rules.add_eos && impl_->eos_id >= 0) {
    ids.push_back(static_cast<int32_t>(impl_->eos_id));
  }
  return ids;
}

std::string Tokenizer::piece(int32_t id) const {
  return id >= 0 && id < size() ? impl_->processor.IdToPiece(id) : std::string();
}

std::string Tokenizer::bytes(int32_t id) const {
  const auto& processor = impl_->processor;
  if (id < 0 || id >= size() || processor.IsControl(id)) return {};
  const std::string& piece = processor.IdToPiece(id);
  if (processor.IsByte(id)) {
    return std::string(1, static_cast<char>(std::stoi(piece.substr(3, 2), nullptr, 16)));
  }
  if (processor.IsUnknown(id)) return " \xe2\x81\x87 ";  // as sentencepiece writes it: U+2047
  std::string text;
  for (size_t at = 0; at < piece.size();) {
    const bool blank = piece.compare(at, kBlank.size(), kBlank) == 0;
    text += blank ? ' ' : piece[at];
    at += blank ? kBlank.size() : 1;
  }
  return text;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  for (int32_t id : ids) text += bytes(id);
  if (text.starts_with(' ')) text.erase(0, 1);
  return repair_utf8(text);
}

}  // namespace gsa
