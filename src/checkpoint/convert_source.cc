#include "checkpoint/convert_source.h"

#include <utility>

#include "checkpoint/files.h"
#include "checkpoint/hf_folder.h"
#include "checkpoint/layout.h"
#include "kernels/error.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxTokenizer = size_t{256} << 20;

ConvertSource from_folder(const fs::path& path, const std::optional<fs::path>& tokenizer) {
  const auto folder = std::make_shared<HfFolder>(HfFolder::open(path));
  if (tokenizer) {
    folder->use_tokenizer(*tokenizer);
  } else {
    folder->use_tokenizer_json();
  }
  return {.where = path.string(),
          .name = fs::canonical(path).filename().string(),
          .config = folder->config(),
          .type = folder->type(),
          .stacked_gate = folder->stacked_gate(),
          .tensors = folder->tensors(),
          .tokenizer = folder->tokenizer(),
          .rules = folder->tokenizer_rules(),
          .chat_template = folder->chat_template(),
          .holder = folder};
}

// The parts that were stored together, each by its name of before.
std::map<std::string, TensorView> take_apart(const Checkpoint& checkpoint, DType type) {
  std::map<std::string, TensorView> tensors;
  for (const LayoutTensor& weight : checkpoint_layout(checkpoint.config(), type)) {
    int64_t row = 0;
    for (const SourceTensor& part : weight.sources) {
      tensors[part.name] = checkpoint.file().tensor(weight.entry.name).rows(row, part.shape[0]);
      row += part.shape[0];
    }
  }
  return tensors;
}

ConvertSource from_checkpoint(const fs::path& path, const std::optional<fs::path>& tokenizer) {
  const auto checkpoint = std::make_shared<const Checkpoint>(Checkpoint::open(path));
  const DType type = checkpoint->weights().lm_head.dtype;
  if (is_quantized(type)) {
    throw Error("{}: holds {} weights, which lost what a conversion needs; convert its source",
                path.string(), dtype_name(type));
  }
  ConvertSource source{.where = path.string(),
                       .name = checkpoint->file().metadata("gsa.source"),
                       .config = checkpoint->config(),
                       .type = type,
                       .tensors = take_apart(*checkpoint, type),
                       .tokenizer = std::string(checkpoint->tokenizer()),
                       .rules = checkpoint->tokenizer_rules(),
                       .chat_template = checkpoint->chat_template(),
                       .holder = checkpoint};
  if (tokenizer) source.tokenizer = read_file(*tokenizer, kMaxTokenizer);
  return source;
}

}  // namespace

ConvertSource open_convert_source(const fs::path& path, const std::optional<fs::path>& tokenizer) {
  std::error_code error;
  return fs::is_regular_file(path, error) ? from_checkpoint(path, tokenizer)
                                          : from_folder(path, tokenizer);
}

}  // namespace gsa
