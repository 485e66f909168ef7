#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace gsa {

// The serialised form of a sentencepiece model (a ModelProto of protocol buffers), as far as gsa
// writes and changes one; reading it is the library's.

struct SentencePiece {
  // The numbers of the format.
  enum Type { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

  std::string text;  // with U+2581 for a blank
  float score = 0;   // of two merges the one with the higher score comes first
  Type type = kNormal;
};

// A BPE model with byte fallback that changes nothing about text but blanks. `blank_in_front`: the
// first word gets one (add_dummy_prefix).
std::string write_bpe_model(const std::vector<SentencePiece>& pieces, bool blank_in_front);

// Of white space alone, as "\n\n" or "▁▁": no user-defined piece that marks something.
bool is_white_piece(std::string_view text);

// Of every piece of a serialised model. What is no model has none.
std::vector<SentencePiece::Type> piece_types(std::string_view model);

struct ModelVariant {
  bool markers;  // user-defined pieces are found in text; otherwise those of white space alone
  bool blank_in_front;  // as the model says; otherwise there is none
};

// The model with these settings and the same ids. What is no model comes out as no model.
std::string vary_model(std::string_view model, const ModelVariant& variant);

}  // namespace gsa
