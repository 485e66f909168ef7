#include "checkpoint/sentencepiece_model.h"

#include <bit>
#include <cstdint>
#include <optional>

namespace gsa {
namespace {

// Field numbers of sentencepiece_model.proto.
constexpr uint32_t kPieces = 1, kTrainer = 2, kNormalizer = 3, kSelfTest = 4;
constexpr uint32_t kPieceText = 1, kPieceScore = 2, kPieceType = 3;
constexpr uint32_t kModelType = 3, kVocabSize = 4, kByteFallback = 35;
constexpr uint32_t kNormalizerName = 1, kDummyPrefix = 3, kRemoveBlanks = 4, kEscapeBlanks = 5;
constexpr uint64_t kBpe = 2;

enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

void put_varint(uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

void put_number(uint32_t field, uint64_t value, std::string& out) {
  put_varint(field << 3 | kVarint, out);
  put_varint(value, out);
}

void put_bytes(uint32_t field, std::string_view bytes, std::string& out) {
  put_varint(field << 3 | kBytes, out);
  put_varint(bytes.size(), out);
  out += bytes;
}

void put_float(uint32_t field, float value, std::string& out) {
  put_varint(field << 3 | kFixed32, out);
  const auto bits = std::bit_cast<uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) out += static_cast<char>(bits >> shift);
}

struct Field {
  uint32_t number, type;
  uint64_t value;          // of a varint
  std::string_view bytes;  // of kBytes
  std::string_view whole;  // with its tag
};

std::optional<uint64_t> take_varint(std::string_view& rest) {
  uint64_t value = 0;
  for (int shift = 0; shift < 64 && !rest.empty(); shift += 7) {
    const auto byte = static_cast<uint8_t>(rest.front());
    rest.remove_prefix(1);
    value |= uint64_t{byte & 0x7Fu} << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// Takes a field off the front; nothing where there is none.
std::optional<Field> take_field(std::string_view& rest) {
  const std::string_view begin = rest;
  const auto tag = take_varint(rest);
  if (!tag || *tag > UINT32_MAX) return std::nullopt;
  Field field{static_cast<uint32_t>(*tag) >> 3, static_cast<uint32_t>(*tag) & 7, 0, {}, {}};
  uint64_t size = 0;
  if (field.type == kVarint || field.type == kBytes) {
    const auto value = take_varint(rest);
    if (!value) return std::nullopt;
    (field.type == kVarint ? field.value : size) = *value;
  } else if (field.type == kFixed32 || field.type == kFixed64) {
    size = field.type == kFixed32 ? 4 : 8;
  } else {
    return std::nullopt;
  }
  if (size > rest.size()) return std::nullopt;
  field.bytes = rest.substr(0, size);
  rest.remove_prefix(size);
  field.whole = begin.substr(0, begin.size() - rest.size());
  return field;
}

struct PieceFields {
  std::string_view text;
  SentencePiece::Type type = SentencePiece::kNormal;
};

PieceFields read_piece(std::string_view message) {
  PieceFields piece;
  while (const auto field = take_field(message)) {
    if (field->number == kPieceText && field->type == kBytes) piece.text = field->bytes;
    if (field->number == kPieceType && field->type == kVarint && field->value >= 1 &&
        field->value <= 6) {
      piece.type = static_cast<SentencePiece::Type>(field->value);
    }
  }
  return piece;
}

bool is_marker(std::string_view message) {
  const PieceFields piece = read_piece(message);
  return piece.type == SentencePiece::kUserDefined && !is_white_piece(piece.text);
}

}  // namespace

std::string write_bpe_model(const std::vector<SentencePiece>& pieces, bool blank_in_front) {
  std::string model;
  for (const SentencePiece& piece : pieces) {
    std::string message;
    put_bytes(kPieceText, piece.text, message);
    put_float(kPieceScore, piece.score, message);
    if (piece.type != SentencePiece::kNormal) put_number(kPieceType, piece.type, message);
    put_bytes(kPieces, message, model);
  }
  std::string trainer;
  put_number(kModelType, kBpe, trainer);
  put_number(kVocabSize, pieces.size(), trainer);
  put_number(kByteFallback, 1, trainer);
  put_bytes(kTrainer, trainer, model);
  std::string normalizer;
  put_bytes(kNormalizerName, "identity", normalizer);
  put_number(kDummyPrefix, blank_in_front, normalizer);
  put_number(kRemoveBlanks, 0, normalizer);
  put_number(kEscapeBlanks, 1, normalizer);
  put_bytes(kNormalizer, normalizer, model);
  return model;
}

bool is_white_piece(std::string_view text) {
  constexpr std::string_view kBlank = "\xE2\x96\x81";
  while (!text.empty()) {
    if (text.starts_with(kBlank)) {
      text.remove_prefix(kBlank.size());
    } else if (text.front() == ' ' || (text.front() >= '\t' && text.front() <= '\r')) {
      text.remove_prefix(1);
    } else {
      return false;
    }
  }
  return true;
}

std::vector<SentencePiece::Type> piece_types(std::string_view model) {
  std::vector<SentencePiece::Type> types;
  while (const auto field = take_field(model)) {
    if (field->number == kPieces && field->type == kBytes) {
      types.push_back(read_piece(field->bytes).type);
    }
  }
  return types;
}

std::string vary_model(std::string_view model, const ModelVariant& variant) {
  std::string result;
  result.reserve(model.size() + 16);
  while (const auto field = take_field(model)) {
    // A field that comes again overrides, so settings are changed by writing them once more.
    if (field->number == kPieces && !variant.markers && is_marker(field->bytes)) {
      std::string piece(field->bytes);
      put_number(kPieceType, SentencePiece::kControl, piece);
      put_bytes(kPieces, piece, result);
    } else if (field->number != kSelfTest) {  // which other settings might fail
      result += field->whole;
    }
  }
  result += model;  // what could not be read
  if (!variant.blank_in_front) {
    std::string normalizer;
    put_number(kDummyPrefix, 0, normalizer);
    put_bytes(kNormalizer, normalizer, result);
  }
  return result;
}

}  // namespace gsa
