#pragma once

#include <array>
#include <filesystem>
#include <string>

#include "tests/support/temporary_folder.h"
#include "text/tokenizer.h"

namespace gsa::test {

// Models of tests/data/text, which make_vectors.py describes.
inline constexpr std::array kTokenizerModels = {"tokenizer.model", "unigram.model",
                                                "no_prefix.model"};

inline std::filesystem::path text_data(const std::string& name) {
  return std::filesystem::path(GSA_SOURCE_DIR) / "tests/data/text" / name;
}

inline Tokenizer load_tokenizer(const std::string& model, const TokenizerRules& rules = {}) {
  return Tokenizer(read_bytes(text_data(model)), rules, /*bos_id=*/1, model);
}

}  // namespace gsa::test
