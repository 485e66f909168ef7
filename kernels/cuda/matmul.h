// Products of a weight with many tokens, by cuBLASLt.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <map>
#include <tuple>

#include "kernels/cuda/common.cuh"
#include "kernels/tensor.h"

namespace gsa::cuda {

// The type of the activations in products with weights of this type, and of what small ones are
// widened to.
constexpr DType operand_type(DType weight) { return is_quantized(weight) ? DType::kBF16 : weight; }

// y = x W^T or y += x W^T: x [tokens, cols] of the operand's type and W [rows, cols], y [tokens,
// rows] of type `y_type`, sums in float32.
struct MatMul {
  const void* x = nullptr;
  int64_t tokens = 0;
  TensorView weight;
  bool accumulate = false;
  void* y = nullptr;
  DType y_type = DType::kF32;
  int64_t y_stride = 0;  // elements from a token to the next; 0 where that is rows
};

class Multiplier {
 public:
  Multiplier();
  ~Multiplier();
  Multiplier(const Multiplier&) = delete;
  Multiplier& operator=(const Multiplier&) = delete;

  // Says that there will be products with this weight.
  void expect(const TensorView& weight);
  // Takes scratch for all that are expected.
  void reserve();
  void multiply(cudaStream_t stream, const MatMul& args);

 private:
  struct Plan;
  // tokens, rows, cols, type of the weight, type of y, its stride, the alignment of y
  using Key = std::tuple<int64_t, int64_t, int64_t, DType, DType, int64_t, uint32_t>;
  const Plan& plan(const Key& key);
  // A small weight is widened panel by panel.
  void multiply_small(cudaStream_t stream, const MatMul& args);

  cublasLtHandle_t handle_ = nullptr;
  DeviceArray<char> workspace_;
  size_t panel_bytes_ = 0;
  DeviceArray<std::byte> panel_;
  std::map<Key, Plan> plans_;
};

}  // namespace gsa::cuda
