#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/safetensors.h"

namespace gsa {

// How text becomes ids around the sentencepiece model: stored in the metadata of a checkpoint.
struct TokenizerRules {
  bool add_bos = false;  // prepend config.bos_token_id to text
  bool add_eos = false;
  // Where the model puts a blank in front of text (Hugging Face's "first" and "legacy"):
  bool blank_once = false;           // not if the text begins with a blank or a user-defined piece
  bool blank_after_special = false;  // in a chat prompt, after every special token too
};

// The weights of one layer, in place in the mapped file. Matrices are [rows, cols] row-major, in
// the checkpoint's type, but in a quantized checkpoint the embeddings, f and the feature map, whose
// error would feed the memories, are f16 or bf16; norms are f32. elementwise_affine concerns the
// attention output's norm only, as in the training library: the others always have weights.
struct LayerWeights {
  TensorView attn_norm;    // [D] f32
  TensorView qkvf;         // [H*K + G*K + G*V + G*M, D]; without its last rows where f is there
  TensorView f;            // [G*M, D] in a quantized checkpoint; else null
  TensorView conv;         // [H*K + G*K + G*V, conv_size] f32, or null
  TensorView feature_map;  // [K, K]; null unless t2r
  TensorView g_norm;       // [H*V] f32; null where elementwise_affine is false
  TensorView o_proj;       // [D, H*V]
  TensorView mlp_norm;     // [D] f32
  TensorView gate_up;      // [2F, D], gate rows first
  TensorView down;         // [D, F]
};

struct ModelWeights {
  TensorView embeddings;  // [N, D]
  std::vector<LayerWeights> layers;
  TensorView norm;     // [D] f32
  TensorView lm_head;  // [N, D]; when tied the embeddings or, quantized, a copy of them
};

// A converted checkpoint (docs/checkpoint-format.md), mapped and used in place.
class Checkpoint {
 public:
  // Opens and checks: format version, config, every expected tensor present with its shape and an
  // accepted dtype, none superfluous. Throws gsa::Error naming file and tensor or field; a Hugging
  // Face folder or a file that was not converted is refused with the command that converts it.
  static Checkpoint open(const std::filesystem::path& path);

  const std::string& name() const { return file_.name(); }
  const GsaConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  const TokenizerRules& tokenizer_rules() const { return rules_; }
  const SafetensorsFile& file() const { return file_; }

  // Type of the large matrices: "f32", "f16", "bf16", "q8" or "q4".
  const std::string& type() const;

  // The serialised sentencepiece model; empty when the checkpoint has none.
  std::string_view tokenizer() const;

  // The Jinja chat template; empty when the model has none.
  std::string chat_template() const;

  // 16 hexadecimal digits that two checkpoints share only if config and weights are the same.
  // Computed at conversion (metadata `gsa.fingerprint`).
  const std::string& fingerprint() const;

 private:
  Checkpoint(SafetensorsFile file, GsaConfig config);

  SafetensorsFile file_;
  GsaConfig config_;
  TokenizerRules rules_;
  ModelWeights weights_;
};

}  // namespace gsa
