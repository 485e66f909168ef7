// Collects the operations of a decode step and runs them again as one kernel.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/stream_step.cuh"

namespace gsa::cuda {

// The operations of GsaModel's step for a few tokens are told to a program one after the other,
// instead of being executed; where the persistent kernel can do all of them, it does this step and
// the later ones of that kind.
class StreamProgram {
 public:
  // `tokens` and `rows` are in device memory, where later steps have theirs too.
  StreamProgram(const Launch& how, int64_t T, const int32_t* tokens, const DecodeRow* rows);

  void embed(const TensorView& table);
  void norm_project(const NormProject& args);
  void mix(const Mix& args);
  void gated_mlp(const GatedMlp& args);
  void gather_logit_rows();            // all rows, in their order
  void other() { possible_ = false; }  // an operation that the kernel does not have

  // All operations have been told: takes memory and returns whether run() can do them; false too
  // where there is no memory left.
  bool finish();

  // Queues a step.
  void run();

 private:
  enum class Next { kEmbed, kQkvf, kMix, kOut, kMlp, kHead, kNothing };

  void expect(Next next, Next then) {
    possible_ = possible_ && next_ == next;
    next_ = then;
  }
  void take_memory();
  void describe_matrices();
  // The matrix, which must be of that type.
  const void* matrix(const TensorView& weight, DType type);
  // Sets a field that must be the same in all layers.
  template <typename T, typename U>
  void agree(T& field, U value);

  Launch how_;
  StreamStep step_{};
  StreamPlan plan_{};
  std::vector<StreamLayer> layers_;
  StreamLayer head_{};
  bool possible_ = true;
  Next next_ = Next::kEmbed;
  DeviceArray<StreamLayer> device_layers_;
  DeviceArray<CUtensorMap> matrices_;
  DeviceArray<float> exchange_;
};

}  // namespace gsa::cuda
