#include "checkpoint/tokenizer_json.h"

#include <algorithm>
#include <set>
#include <unordered_map>
#include <vector>

#include "checkpoint/bpe_merges.h"
#include "checkpoint/json.h"
#include "checkpoint/sentencepiece_model.h"
#include "kernels/error.h"

namespace gsa {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kBlank = "\xE2\x96\x81";
constexpr int64_t kMaxPieces = 1 << 20;
constexpr size_t kMaxPieceBytes = 512;

// How a tokenizer puts a blank in front of text.
enum class Prefix { kNone, kAlways, kUnlessBlank };

struct Blanks {
  Prefix prefix = Prefix::kNone;
  bool every_segment = false;  // after an added token too
  bool words = false;          // merges do not cross a blank
};

class Reader {
 public:
  Reader(const Json& root, const std::string& name) : root_(root), json_(root, name) {}

  ConvertedTokenizer read() {
    check_kind();
    read_vocabulary();
    read_added_tokens();
    const Blanks blanks = read_blanks();
    read_decoder(blanks.prefix != Prefix::kNone);
    ConvertedTokenizer result;
    read_post_processor(result);
    check_added_tokens(blanks);
    result.model = write_bpe_model(pieces(blanks), blanks.prefix != Prefix::kNone);
    result.blank_once = blanks.prefix == Prefix::kUnlessBlank;
    result.blank_after_special = blanks.every_segment;
    return result;
  }

 private:
  struct AddedToken {
    int64_t id;
    std::string content;
    bool special;
  };

  template <typename... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    throw Error("{}: {}; give a sentencepiece model with --tokenizer FILE.model", json_.name(),
                fmt::format(format, std::forward<Args>(args)...));
  }

  // "BPE", "Metaspace", ...; empty where there is no such part.
  std::string type_of(const Json& part) const {
    if (!part.is_object()) return "";
    const auto type = part.find("type");
    return type != part.end() && type->is_string() ? type->get<std::string>() : "";
  }

  // The members of a Sequence, or the part itself; none where it is null.
  std::vector<const Json*> parts_of(const char* key, const char* list) const {
    const auto part = root_.find(key);
    if (part == root_.end() || part->is_null()) return {};
    if (type_of(*part) != "Sequence") return {&*part};
    std::vector<const Json*> parts;
    const JsonObject sequence(*part, fmt::format("{}: {}", json_.name(), key));
    for (const Json& member : sequence.at(list)) parts.push_back(&member);
    return parts;
  }

  void check_kind() const {
    const Json& model = json_.at("model");
    const std::string type = type_of(model);
    for (const char* key : {"pre_tokenizer", "decoder", "post_processor"}) {
      for (const char* list : {"pretokenizers", "decoders", "processors"}) {
        const auto part = root_.find(key);
        if (part == root_.end() || !part->is_object() || !part->contains(list)) {
          if (part != root_.end() && type_of(*part) == "ByteLevel") refuse_byte_level();
          continue;
        }
        for (const Json& member : part->at(list)) {
          if (type_of(member) == "ByteLevel") refuse_byte_level();
        }
      }
    }
    if (type.empty()) refuse("a tokenizer without a type is not supported, only BPE is");
    if (type != "BPE") refuse("a {} tokenizer is not supported, only BPE is", printable(type));
    const JsonObject bpe(model, json_.name() + ": model");
    if (!bpe.boolean_or("byte_fallback", false)) {
      refuse("BPE without byte fallback is not supported");
    }
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (bpe.present(affix) && !bpe.string(affix).empty()) refuse("BPE with {}", affix);
    }
    if (bpe.present("dropout") && bpe.number("dropout", 0, 1) > 0) refuse("BPE with dropout");
    if (bpe.present("ignore_merges") && bpe.boolean("ignore_merges")) {
      refuse("BPE with ignore_merges");
    }
  }

  [[noreturn]] void refuse_byte_level() const { refuse("byte-level BPE is not supported"); }

  void read_vocabulary() {
    const JsonObject model(json_.at("model"), json_.name() + ": model");
    const Json& vocabulary = model.at("vocab");
    const JsonObject by_text(vocabulary, model.name() + ": vocab");
    for (const auto& [text, id] : vocabulary.items()) {
      put(by_text.integer(text, 0, kMaxPieces - 1), text);
      vocabulary_[text] = id.get<int32_t>();
    }
    if (!model.present("unk_token")) refuse("BPE without unk_token");
    unknown_ = model.string("unk_token");
    if (vocabulary_.count(unknown_) == 0) {
      model.refuse("unk_token", "a piece of the vocabulary");
    }
    for (int byte = 0; byte < 256; ++byte) {
      const std::string piece = fmt::format("<0x{:02X}>", byte);
      if (vocabulary_.count(piece) == 0) refuse("the byte {} is not in the vocabulary", piece);
    }
  }

  void put(int64_t id, const std::string& text) {
    if (text.empty() || text.size() > kMaxPieceBytes) {
      refuse("the piece {} has {} bytes", id, text.size());
    }
    if (static_cast<size_t>(id) >= texts_.size()) texts_.resize(static_cast<size_t>(id) + 1);
    std::string& place = texts_[static_cast<size_t>(id)];
    if (!place.empty() && place != text) {
      refuse("the id {} belongs to \"{}\" and to \"{}\"", id, printable(place), printable(text));
    }
    place = text;
  }

  void read_added_tokens() {
    if (!json_.present("added_tokens")) return;
    const Json& list = json_.at("added_tokens");
    if (!list.is_array()) json_.refuse("added_tokens", "a list");
    for (const Json& element : list) {
      const JsonObject token(element, json_.name() + ": added_tokens");
      AddedToken added{token.integer("id", 0, kMaxPieces - 1), token.string("content"),
                       token.boolean_or("special", false)};
      for (const char* flag : {"single_word", "lstrip", "rstrip"}) {
        if (token.boolean_or(flag, false)) {
          refuse("the added token \"{}\" has {}", printable(added.content), flag);
        }
      }
      const auto known = vocabulary_.find(added.content);
      if (known != vocabulary_.end() && known->second != added.id) {
        refuse("the added token \"{}\" has the id {}, and in the vocabulary {}",
               printable(added.content), added.id, known->second);
      }
      put(added.id, added.content);
      added_.push_back(std::move(added));
    }
  }

  Blanks read_blanks() const {
    Blanks blanks;
    bool replaced = false;
    for (const Json* part : parts_of("normalizer", "normalizers")) {
      const JsonObject normalizer(*part, json_.name() + ": normalizer");
      const std::string type = type_of(*part);
      if (type == "Prepend" && normalizer.string("prepend") == kBlank) {
        blanks.prefix = Prefix::kAlways;
        blanks.every_segment = true;
      } else if (type == "Replace" && replaces_blanks(normalizer, " ", kBlank)) {
        replaced = true;
      } else {
        refuse("the normalizer {} is not supported", printable(type));
      }
    }
    for (const Json* part : parts_of("pre_tokenizer", "pretokenizers")) {
      const std::string type = type_of(*part);
      if (type != "Metaspace" || replaced || blanks.prefix != Prefix::kNone) {
        refuse("the pre-tokenizer {} is not supported here", printable(type));
      }
      read_metaspace(JsonObject(*part, json_.name() + ": pre_tokenizer"), blanks);
      replaced = true;
    }
    if (!replaced) refuse("blanks are not written as \"{}\"", kBlank);
    return blanks;
  }

  void read_metaspace(const JsonObject& metaspace, Blanks& blanks) const {
    if (metaspace.string("replacement") != kBlank) {
      metaspace.refuse("replacement", fmt::format("\"{}\"", kBlank));
    }
    // Older files say add_prefix_space in place of prepend_scheme.
    std::string scheme = metaspace.boolean_or("add_prefix_space", true) ? "always" : "never";
    if (metaspace.present("prepend_scheme")) scheme = metaspace.string("prepend_scheme");
    if (scheme != "first" && scheme != "always" && scheme != "never") {
      metaspace.refuse("prepend_scheme", "first, always or never");
    }
    if (scheme != "never") blanks.prefix = Prefix::kUnlessBlank;
    blanks.every_segment = scheme == "always";
    blanks.words = metaspace.boolean_or("split", true);
  }

  static bool replaces_blanks(const JsonObject& part, std::string_view from, std::string_view to) {
    const Json& pattern = part.at("pattern");
    const auto string = pattern.find("String");
    return string != pattern.end() && *string == from && part.string("content") == to;
  }

  // What tokens become text by must be what sentencepiece does.
  void read_decoder(bool prefix) const {
    bool bytes = false, blanks = false, strips = false;
    for (const Json* part : parts_of("decoder", "decoders")) {
      const std::string type = type_of(*part);
      const JsonObject decoder(*part, json_.name() + ": decoder");
      if (type == "ByteFallback") {
        bytes = true;
      } else if (type == "Replace" && replaces_blanks(decoder, kBlank, " ")) {
        blanks = true;
      } else if (type == "Strip" && decoder.string("content") == " " &&
                 decoder.integer("start", 0, INT32_MAX) <= 1 &&
                 decoder.integer("stop", 0, INT32_MAX) == 0) {
        strips = decoder.integer("start", 0, 1) == 1;
      } else if (type != "Fuse") {
        refuse("the decoder {} is not supported", printable(type));
      }
    }
    if (!bytes || !blanks || strips != prefix) {
      refuse("the decoder does not undo what the encoder does to blanks and bytes");
    }
  }

  void read_post_processor(ConvertedTokenizer& result) const {
    for (const Json* part : parts_of("post_processor", "processors")) {
      const std::string type = type_of(*part);
      if (type != "TemplateProcessing") {
        refuse("the post-processor {} is not supported", printable(type));
      }
      const JsonObject processor(*part, json_.name() + ": post_processor");
      bool behind = false;
      for (const Json& element : processor.at("single")) {
        if (element.contains("Sequence")) {
          behind = true;
          continue;
        }
        const JsonObject item(element, processor.name());
        const JsonObject special(item.at("SpecialToken"), processor.name());
        std::optional<int64_t>& place = behind ? result.last_token : result.first_token;
        if (place) refuse("the post-processor puts several tokens around text");
        place = id_of(special.string("id"));
      }
    }
  }

  int64_t id_of(const std::string& text) const {
    for (const AddedToken& added : added_) {
      if (added.content == text) return added.id;
    }
    const auto known = vocabulary_.find(text);
    if (known == vocabulary_.end()) refuse("there is no token \"{}\"", printable(text));
    return known->second;
  }

  // Special tokens are no part of text. The others are found in text, by sentencepiece too, but it
  // knows no blank after them, and none within them.
  void check_added_tokens(const Blanks& blanks) const {
    for (const AddedToken& added : added_) {
      if (added.special || added.content == unknown_) continue;
      const std::string shown = printable(added.content);
      if (blanks.every_segment) {
        refuse("a blank follows the added token \"{}\", which is not special", shown);
      }
      if (added.content.find(' ') != added.content.npos ||
          added.content.find(kBlank) != added.content.npos) {
        refuse("the added token \"{}\", which is not special, has a blank", shown);
      }
    }
  }

  std::vector<SentencePiece> pieces(const Blanks& blanks) const {
    const BpeMerges merges = read_merges();
    std::vector<SentencePiece> pieces(texts_.size());
    // Below every merge.
    float never = -static_cast<float>(merges.size());
    std::set<std::string_view> seen;
    for (size_t id = 0; id < pieces.size(); ++id) {
      SentencePiece& piece = pieces[id];
      piece.text = texts_[id];
      if (piece.text.empty()) refuse("no token has the id {}", id);
      if (!seen.insert(texts_[id]).second) refuse("\"{}\" has two ids", printable(piece.text));
      if (is_byte(piece.text)) {
        piece.type = SentencePiece::kByte;
      } else if (is_character(piece.text)) {
        piece.score = never;
      } else if (const auto rank = merges.rank_of(piece.text);
                 rank && !(blanks.words && piece.text.find(kBlank, 1) != piece.text.npos)) {
        piece.score = -static_cast<float>(*rank);
      } else {
        piece.type = SentencePiece::kUnused;
        piece.score = never -= 1;
      }
    }
    for (const AddedToken& added : added_) {
      pieces[static_cast<size_t>(added.id)].type =
          added.special ? SentencePiece::kControl : SentencePiece::kUserDefined;
    }
    pieces[static_cast<size_t>(vocabulary_.at(unknown_))].type = SentencePiece::kUnknown;
    return pieces;
  }

  static bool is_byte(std::string_view text) {
    constexpr std::string_view kDigits = "0123456789ABCDEF";
    return text.size() == 6 && text.starts_with("<0x") && text.ends_with('>') &&
           kDigits.find(text[3]) != kDigits.npos && kDigits.find(text[4]) != kDigits.npos;
  }

  static bool is_character(std::string_view text) {
    return std::count_if(text.begin(), text.end(),
                         [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }) == 1;
  }

  BpeMerges read_merges() const {
    const JsonObject model(json_.at("model"), json_.name() + ": model");
    const Json& list = model.at("merges");
    if (!list.is_array()) model.refuse("merges", "a list");
    BpeMerges merges(vocabulary_);
    for (const Json& merge : list) {
      std::string left, right;
      if (merge.is_string()) {  // "▁t he"
        const auto& text = merge.get_ref<const std::string&>();
        const size_t blank = text.find(' ');
        if (blank != text.npos) {
          left = text.substr(0, blank);
          right = text.substr(blank + 1);
        }
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
                 merge[1].is_string()) {
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      }
      if (left.empty() || right.empty()) refuse("the merge {} is no pair of pieces", merges.size());
      if (is_byte(left) || is_byte(right)) refuse("the merge {} is one of bytes", merges.size());
      if (!merges.add(left, right)) {
        refuse("the merge {} of \"{}\" and \"{}\" is not new, or not in the vocabulary",
               merges.size(), printable(left), printable(right));
      }
    }
    constexpr size_t kExact = size_t{1} << 23;  // scores are float32
    if (merges.size() + texts_.size() > kExact) refuse("too many merges");
    return merges;
  }

  const Json& root_;
  JsonObject json_;
  std::unordered_map<std::string, int32_t> vocabulary_;
  std::vector<std::string> texts_;  // by id, added tokens too
  std::vector<AddedToken> added_;
  std::string unknown_;
};

}  // namespace

ConvertedTokenizer convert_tokenizer_json(std::string_view json, const std::string& name) {
  const Json root = parse_json(json, name);
  return Reader(root, name).read();
}

}  // namespace gsa
