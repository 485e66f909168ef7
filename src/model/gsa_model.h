#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "kernels/backend.h"
#include "model/state_pool.h"

namespace gsa {

enum class Logits : uint8_t { kNone, kLast, kAll };

// The work of one step: packed tokens and the sequences they belong to.
struct Batch {
  struct Sequence {
    int32_t state = 0;
    int32_t first = 0;  // row of its first token
    int32_t count = 0;
    Logits logits = Logits::kLast;
  };

  std::vector<int32_t> tokens;
  std::vector<int32_t> drawn_rows;  // Step::drawn_rows
  std::vector<Sequence> sequences;

  // Appends a sequence's next tokens. A state may stand in a batch once.
  void add(const StateHandle& state, std::span<const int32_t> tokens, Logits logits);
  // The same for one token, which the latest Backend::queue_sample() drew for this row. A batch is
  // made by one of the two alone.
  void add_drawn(const StateHandle& state, int32_t row, Logits logits);
  void clear();
};

// A GSA language model on a backend: weights and the forward pass.
//
// All activations are allocated at construction for the widest step; forward() leaves it to the
// backend to take a little for a kind of step that is new, see prepare(). Used by the thread of the
// backend alone.
class GsaModel {
 public:
  // Told how many bytes of the weights the backend has, while they are handed over.
  using LoadProgress = std::function<void(int64_t done, int64_t total)>;

  // The weights must outlive the model. Throws where the backend lacks memory.
  GsaModel(const GsaConfig& config, const ModelWeights& weights, Backend& backend,
           const StepLimits& limits, const LoadProgress& progress = nullptr);

  const GsaConfig& config() const { return config_; }
  const StepLimits& limits() const { return limits_; }
  Backend& backend() const { return backend_; }

  // Bytes of weights that a step reads once, however many tokens are in it. The embedding table is
  // counted only where it is also the head.
  int64_t weight_bytes() const;

  // Runs steps of decoding, draws included, of every size for which the backend sets something up,
  // so that none of them takes longer later for being the first of its kind. REQUIRES: all states
  // are free; they are again afterwards.
  void prepare(StatePool& states);

  // Runs the batch, updates the states in place and returns the logits asked for, [R, N] f32 in
  // device memory, in the order of the sequences and their tokens; valid until the next call.
  // Throws where the batch exceeds the limits or holds a token outside the vocabulary, before
  // anything is changed.
  TensorView forward(const Batch& batch, StatePool& states);

 private:
  void check(const Batch& batch) const;
  void run(StatePool& states, int64_t tokens, const TensorView& logits);
  void run_layer(int64_t layer, StatePool& states, int64_t tokens);
  TensorView view(const Buffer& buffer, int64_t rows, int64_t columns) const;

  GsaConfig config_;
  ModelWeights weights_;  // as the backend sees them
  Backend& backend_;
  StepLimits limits_;

  // Activations, all f32.
  Buffer x_;       // [T, D] the residual stream
  Buffer qkvf_;    // [T, H*K + G*K + G*V + G*M]
  Buffer mixed_;   // [T, H*V]
  Buffer hidden_;  // [T, F]
  Buffer last_;    // [R, D]
  Buffer logits_;  // [R, N]

  // The step being run.
  std::vector<Segment> segments_;
  std::vector<int32_t> logit_rows_;
};

}  // namespace gsa
