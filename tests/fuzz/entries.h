#pragma once

#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/sentencepiece_model.h"
#include "checkpoint/tokenizer_json.h"
#include "kernels/error.h"

// What the fuzz targets run on every input, and the corpus test on every file of the corpus. Any
// input may be refused with gsa::Error of one line; nothing else may come out.
namespace gsa::fuzz {

inline void require(bool condition) {
  if (!condition) std::abort();
}

inline void require_one_line_error(const Error& error) {
  const std::string_view text = error.what();
  require(text.rfind("input", 0) == 0);
  require(text.find('\n') == std::string_view::npos);
  require(text.size() < 1000);
}

// What is accepted lies within the bytes given, every tensor in its place.
inline void safetensors(std::string_view bytes) {
  try {
    const SafetensorsFile file = SafetensorsFile::parse(bytes, "input");
    size_t total = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      const char* data = static_cast<const char*>(tensor.data);
      require(tensor.rank <= TensorView::kMaxRank);
      require(data >= bytes.data() && data + tensor.bytes() <= bytes.data() + bytes.size());
      total += tensor.bytes();
    }
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof(header));
    require(total == bytes.size() - sizeof(header) - header);
  } catch (const Error& error) {
    require_one_line_error(error);
  }
}

// Sizes of what is accepted do not overflow, and the normalised form says the same.
inline void check_config(const GsaConfig& config) {
  require(config.state_bytes() > 0);
  require(config.parameters() > 0);
  require(config.num_heads % config.num_kv_heads == 0);
  require(parse_normalized_config(normalized_config(config), "normalized") == config);
}

inline void config(std::string_view bytes) {
  for (const auto parse : {parse_hf_config, parse_normalized_config}) {
    try {
      check_config(parse(bytes, "input"));
    } catch (const Error& error) {
      require_one_line_error(error);
    }
  }
}

inline void tokenizer_json(std::string_view bytes) {
  try {
    const ConvertedTokenizer converted = convert_tokenizer_json(bytes, "input");
    require(piece_types(converted.model).size() >= 257);
  } catch (const Error& error) {
    require_one_line_error(error);
  }
}

}  // namespace gsa::fuzz
