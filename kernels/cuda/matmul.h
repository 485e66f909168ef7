// Products of a weight with many tokens, by cuBLASLt.
#pragma once

#include <cublasLt.h>

#include <map>
#include <tuple>

#include "kernels/cuda/common.cuh"
#include "kernels/tensor.h"

namespace gsa::cuda {

// y = x W^T or y += x W^T: x [tokens, cols] and W [rows, cols] of one type, y [tokens, rows] of
// type `y_type`, sums in float32.
struct MatMul {
  const void* x = nullptr;
  int64_t tokens = 0;
  TensorView weight;
  bool accumulate = false;
  void* y = nullptr;
  DType y_type = DType::kF32;
};

class Multiplier {
 public:
  Multiplier();
  ~Multiplier();
  Multiplier(const Multiplier&) = delete;
  Multiplier& operator=(const Multiplier&) = delete;

  void multiply(cudaStream_t stream, const MatMul& args);

 private:
  struct Plan;
  // tokens, rows, cols, type of the weight, type of y
  using Key = std::tuple<int64_t, int64_t, int64_t, DType, DType>;
  const Plan& plan(const Key& key);

  cublasLtHandle_t handle_ = nullptr;
  DeviceArray<char> workspace_;
  std::map<Key, Plan> plans_;
};

}  // namespace gsa::cuda
