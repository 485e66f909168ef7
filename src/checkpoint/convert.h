#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>

#include "kernels/tensor.h"

namespace gsa {

struct ConvertOptions {
  std::optional<DType> type = std::nullopt;  // f32, f16, bf16, q8 or q4; none: source's
  bool force = false;                        // overwrite an existing destination
  // A sentencepiece model to take in place of what the folder has.
  std::optional<std::filesystem::path> tokenizer = std::nullopt;
  // Called after each piece with bytes written and bytes in all; may throw to stop, which leaves
  // nothing behind.
  std::function<void(int64_t done, int64_t total)> progress = nullptr;
};

// Writes the Hugging Face folder or checkpoint `source` as one checkpoint file; one of quantized
// matrices cannot be a source. Streams: resident memory stays
// near one tensor's size, whatever the model's. The same input gives the same bytes. Throws
// gsa::Error; nothing is ever left under `destination` but a whole file.
void convert(const std::filesystem::path& source, const std::filesystem::path& destination,
             const ConvertOptions& options = {});

}  // namespace gsa
