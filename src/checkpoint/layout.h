#pragma once

#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"

namespace gsa {

// A tensor of a Hugging Face folder.
struct SourceTensor {
  std::string name;
  std::vector<int64_t> shape;
};

// A weight of a converted checkpoint and the source tensors whose elements, one tensor after the
// other, make it up.
struct LayoutTensor {
  SafetensorsWriter::Entry entry;
  std::vector<SourceTensor> sources;
  bool matrix = false;  // of the checkpoint's type or, beside quantized ones, of 16 bits; else f32

  // As the file holds it: a quantized matrix is U8, [rows, bytes of a row].
  SafetensorsWriter::Entry stored() const;
};

// The types of a checkpoint's matrices.
struct MatrixTypes {
  MatrixTypes(DType type, DType fine = DType::kF16)
      : type(type), fine(is_quantized(type) ? fine : type) {}

  DType type;
  DType fine;  // f16 or bf16 where `type` is quantized: of the embeddings, f and the feature map
};

// Every weight of a model, in the order of the file: the one place that knows names and shapes of
// both forms. Quantized matrices have their true shape and type here. `stacked_gate`: the source
// holds gate and up in one tensor (before February 2025).
std::vector<LayoutTensor> checkpoint_layout(const GsaConfig& config, const MatrixTypes& types,
                                            bool stacked_gate = false);

// Where every tensor of a checkpoint begins, counted in bytes from the beginning of the file.
inline constexpr int64_t kTensorAlignment = 64;

// The names gsa.pad.0, gsa.pad.1, ... of the U8 tensors that fill the file up to the next multiple
// of kTensorAlignment.
inline constexpr const char* kPadPrefix = "gsa.pad.";
inline constexpr const char* kTokenizerTensor = "tokenizer";

}  // namespace gsa
