#include "text/tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <mutex>
#include <utility>

#include <sentencepiece_processor.h>

#include "checkpoint/json.h"
#include "checkpoint/sentencepiece_model.h"
#include "kernels/error.h"
#include "text/stream_decoder.h"
#include "text/utf8.h"

// Exported by the library and left out of its installed header.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace gsa {
namespace {

void silence_sentencepiece() {
  constexpr int kFatalOnly = 3;
  [[maybe_unused]] static const bool once = [] {
    sentencepiece::logging::SetMinLogLevel(kFatalOnly);
    return true;
  }();
}

std::string with_blanks(std::string_view piece) {
  std::string text;
  for (size_t at; (at = piece.find(kBlankSymbol)) != piece.npos;) {
    text += piece.substr(0, at);
    text += ' ';
    piece.remove_prefix(at + kBlankSymbol.size());
  }
  return text += piece;
}

std::string_view tokenizer_of(const Checkpoint& checkpoint) {
  if (checkpoint.tokenizer().empty()) {
    throw Error("{}: has no tokenizer; give token ids in place of text", checkpoint.name());
  }
  return checkpoint.tokenizer();
}

}  // namespace

struct Tokenizer::Impl {
  struct Token {
    Kind kind;
    std::string piece;
    std::string bytes;
  };

  Impl(std::string_view model, const TokenizerRules& rules, int64_t bos_id,
       const std::string& name);
  Token read_token(int id) const;
  LeadingBlank probe_leading_blank() const;
  void list_specials();
  const std::string& special_text(int32_t id) const;

  // The special token at the front of a template's text, the longest; -1: there is none.
  int32_t special_at_front(std::string_view text) const;

  // How a text is read.
  struct Reading {
    bool markers;         // user-defined pieces are found in it, not only those of white space
    bool blank_in_front;  // where the model adds one
  };
  void encode(std::string_view text, Reading reading, std::vector<int32_t>& ids) const;
  const sentencepiece::SentencePieceProcessor& processor_for(Reading reading) const;
  bool begins_apart(std::string_view text) const;

  std::string name;
  TokenizerRules rules;
  int64_t bos_id;
  int64_t eos_id;
  std::string model;  // serialised, for the variants
  sentencepiece::SentencePieceProcessor processor;
  std::vector<Token> tokens;
  LeadingBlank leading_blank;
  std::vector<int32_t> user_defined;
  // Control, unknown and marking user-defined pieces by their first byte, longest first.
  std::array<std::vector<int32_t>, 256> specials;
  bool has_markers = false;

  // The library has no other way to read a text otherwise than the model says, so that is said in
  // copies of the model. Made when first needed, by markers and blank_in_front.
  struct Variant {
    std::once_flag once;
    sentencepiece::SentencePieceProcessor processor;
  };
  mutable std::array<Variant, 4> variants;
};

Tokenizer::Impl::Impl(std::string_view model, const TokenizerRules& rules, int64_t bos_id,
                      const std::string& name)
    : name(name), rules(rules), bos_id(bos_id), model(model) {
  silence_sentencepiece();
  const auto status = processor.LoadFromSerializedProto(model);
  if (!status.ok()) {
    throw Error("{}: the tokenizer is no sentencepiece model: {}", name,
                printable(status.error_message()));
  }
  eos_id = processor.eos_id();
  const int size = processor.GetPieceSize();
  tokens.reserve(size);
  for (int id = 0; id < size; ++id) tokens.push_back(read_token(id));
  leading_blank = probe_leading_blank();
  list_specials();
}

Tokenizer::Impl::Token Tokenizer::Impl::read_token(int id) const {
  const std::string piece = repair_utf8(processor.IdToPiece(id));
  if (processor.IsControl(id)) return {Kind::kControl, piece, ""};
  if (processor.IsByte(id)) {
    constexpr std::string_view form = "<0x00>";
    uint8_t byte = 0;
    const char* digits = piece.data() + form.find("00");
    if (piece.size() != form.size() ||
        std::from_chars(digits, digits + 2, byte, 16).ptr != digits + 2) {
      throw Error("{}: the tokenizer's byte piece {} is \"{}\"", name, id, printable(piece));
    }
    return {Kind::kByte, piece, std::string(1, static_cast<char>(byte))};
  }
  if (processor.IsUnknown(id)) {
    std::string surface;
    processor.Decode(std::vector<int>{id}, &surface).IgnoreError();
    return {Kind::kUnknown, piece, repair_utf8(surface)};
  }
  return {Kind::kText, piece, with_blanks(piece)};
}

// The library keeps its normaliser's settings to itself, but they show in what it decodes.
Tokenizer::LeadingBlank Tokenizer::Impl::probe_leading_blank() const {
  const auto length = [this](const std::vector<int>& ids) {
    std::string text;
    processor.Decode(ids, &text).IgnoreError();
    return text.size();
  };
  // The shortest piece with a blank in front: only a blank alone tells the first from every one,
  // and without such a piece there is no difference.
  int probe = -1;
  for (int id = 0; id < static_cast<int>(tokens.size()); ++id) {
    const Token& token = tokens[id];
    if (token.kind == Kind::kText && token.piece.starts_with(kBlankSymbol) &&
        (probe < 0 || token.piece.size() < tokens[probe].piece.size())) {
      probe = id;
    }
  }
  if (probe < 0 || length({probe}) == tokens[probe].bytes.size()) return LeadingBlank::kKeep;
  return length({probe, probe}) == 0 ? LeadingBlank::kDropEvery : LeadingBlank::kDropFirst;
}

// The library does not tell user-defined pieces from normal ones.
void Tokenizer::Impl::list_specials() {
  const std::vector<SentencePiece::Type> types = piece_types(model);
  for (int32_t id = 0; id < static_cast<int32_t>(tokens.size()); ++id) {
    const Token& token = tokens[id];
    const bool defined =
        static_cast<size_t>(id) < types.size() && types[id] == SentencePiece::kUserDefined;
    const bool marker = defined && !is_white_piece(token.piece);
    if (defined) user_defined.push_back(id);
    has_markers = has_markers || marker;
    const std::string& text = special_text(id);
    if ((marker || token.kind == Kind::kControl || token.kind == Kind::kUnknown) && !text.empty()) {
      specials[static_cast<uint8_t>(text.front())].push_back(id);
    }
  }
  for (std::vector<int32_t>& list : specials) {
    std::stable_sort(list.begin(), list.end(), [this](int32_t a, int32_t b) {
      return special_text(a).size() > special_text(b).size();
    });
  }
}

const std::string& Tokenizer::Impl::special_text(int32_t id) const {
  return tokens[id].kind == Kind::kText ? tokens[id].bytes : tokens[id].piece;
}

int32_t Tokenizer::Impl::special_at_front(std::string_view text) const {
  for (int32_t id : specials[static_cast<uint8_t>(text.front())]) {
    if (text.starts_with(special_text(id))) return id;
  }
  return -1;
}

const sentencepiece::SentencePieceProcessor& Tokenizer::Impl::processor_for(Reading reading) const {
  if (!has_markers) reading.markers = true;
  if (reading.markers && reading.blank_in_front) return processor;
  Variant& variant = variants[2 * reading.markers + reading.blank_in_front];
  std::call_once(variant.once, [&] {
    const std::string bytes = vary_model(model, {reading.markers, reading.blank_in_front});
    const auto status = variant.processor.LoadFromSerializedProto(bytes);
    if (!status.ok()) {
      throw Error("{}: the tokenizer cannot be used for prompts: {}", name,
                  printable(status.error_message()));
    }
  });
  return variant.processor;
}

// What Hugging Face puts no blank in front of.
bool Tokenizer::Impl::begins_apart(std::string_view text) const {
  return text.starts_with(' ') || text.starts_with(kBlankSymbol) ||
         std::any_of(user_defined.begin(), user_defined.end(), [&](int32_t id) {
           return !tokens[id].bytes.empty() && text.starts_with(tokens[id].bytes);
         });
}

void Tokenizer::Impl::encode(std::string_view text, Reading reading,
                             std::vector<int32_t>& ids) const {
  if (rules.blank_once && begins_apart(text)) reading.blank_in_front = false;
  std::vector<int> more;
  const auto status = processor_for(reading).Encode(text, &more);
  if (!status.ok()) {
    throw Error("{}: the tokenizer cannot encode the text: {}", name,
                printable(status.error_message()));
  }
  ids.insert(ids.end(), more.begin(), more.end());
}

Tokenizer::Tokenizer(const Checkpoint& checkpoint)
    : Tokenizer(tokenizer_of(checkpoint), checkpoint.tokenizer_rules(),
                checkpoint.config().bos_token_id, checkpoint.name()) {
  const GsaConfig& config = checkpoint.config();
  if (size() > config.vocab_size) {
    throw Error("{}: the tokenizer has {} pieces, more than vocab_size {}", checkpoint.name(),
                size(), config.vocab_size);
  }
  if (impl_->eos_id < 0 && !config.eos_token_ids.empty()) {
    impl_->eos_id = config.eos_token_ids.front();
  }
}

Tokenizer::Tokenizer(std::string_view model, const TokenizerRules& rules, int64_t bos_id,
                     const std::string& name)
    : impl_(std::make_unique<Impl>(model, rules, bos_id, name)) {}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

int64_t Tokenizer::size() const { return static_cast<int64_t>(impl_->tokens.size()); }

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids = encode_plain(text);
  if (impl_->rules.add_bos && impl_->bos_id >= 0) {
    ids.insert(ids.begin(), static_cast<int32_t>(impl_->bos_id));
  }
  if (impl_->rules.add_eos && impl_->eos_id >= 0)
    ids.push_back(static_cast<int32_t>(impl_->eos_id));
  return ids;
}

std::vector<int32_t> Tokenizer::encode_plain(std::string_view text) const {
  std::vector<int32_t> ids;
  impl_->encode(text, {.markers = true, .blank_in_front = true}, ids);
  return ids;
}

std::vector<int32_t> Tokenizer::encode_prompt(std::span<const PromptPiece> prompt) const {
  std::vector<int32_t> ids;
  std::string text;  // since the last special token
  const auto flush = [&] {
    const bool blank = ids.empty() || impl_->rules.blank_after_special;
    if (!text.empty()) impl_->encode(text, {.markers = false, .blank_in_front = blank}, ids);
    text.clear();
  };
  for (size_t i = 0; i < prompt.size();) {
    if (prompt[i].content) {
      text += prompt[i++].text;
      continue;
    }
    // A special token may be written in several pieces.
    std::string own;
    for (; i < prompt.size() && !prompt[i].content; ++i) own += prompt[i].text;
    for (std::string_view rest = own; !rest.empty();) {
      const int32_t special = impl_->special_at_front(rest);
      if (special < 0) {
        text += rest.front();
        rest.remove_prefix(1);
      } else {
        flush();
        ids.push_back(special);
        rest.remove_prefix(impl_->special_text(special).size());
      }
    }
  }
  flush();
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (int32_t id : ids) text += decoder.push(id);
  return text += decoder.finish();
}

std::string Tokenizer::piece(int32_t id) const {
  return id >= 0 && id < size() ? impl_->tokens[id].piece : "";
}

std::string Tokenizer::bytes(int32_t id) const {
  return id >= 0 && id < size() ? impl_->tokens[id].bytes : "";
}

Tokenizer::Kind Tokenizer::kind(int32_t id) const {
  return id >= 0 && id < size() ? impl_->tokens[id].kind : Kind::kControl;
}

Tokenizer::LeadingBlank Tokenizer::leading_blank() const { return impl_->leading_blank; }

}  // namespace gsa
