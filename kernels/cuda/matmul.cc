#include "kernels/cuda/matmul.h"

#include <cassert>

namespace gsa::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;

void check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw Error("cuBLASLt: {}: {}", what, cublasLtGetStatusString(status));
  }
}

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return CUDA_R_32F;
    case DType::kF16:
      return CUDA_R_16F;
    default:
      assert(dtype == DType::kBF16);
      return CUDA_R_16BF;
  }
}

// A row-major matrix as cuBLASLt, which counts columns first, sees it: transposed.
class Layout {
 public:
  Layout(DType dtype, int64_t rows, int64_t cols) {
    check(cublasLtMatrixLayoutCreate(&layout_, data_type(dtype), cols, rows, cols), "layout");
  }
  Layout(Layout&& other) noexcept : layout_(std::exchange(other.layout_, nullptr)) {}
  ~Layout() {
    if (layout_ != nullptr) cublasLtMatrixLayoutDestroy(layout_);
  }
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

class Description {
 public:
  Description() {
    check(cublasLtMatmulDescCreate(&description_, CUBLAS_COMPUTE_32F, CUDA_R_32F), "description");
    const cublasOperation_t transpose = CUBLAS_OP_T;
    check(cublasLtMatmulDescSetAttribute(description_, CUBLASLT_MATMUL_DESC_TRANSA, &transpose,
                                         sizeof(transpose)),
          "description");
  }
  Description(Description&& other) noexcept
      : description_(std::exchange(other.description_, nullptr)) {}
  ~Description() {
    if (description_ != nullptr) cublasLtMatmulDescDestroy(description_);
  }
  cublasLtMatmulDesc_t get() const { return description_; }

 private:
  cublasLtMatmulDesc_t description_ = nullptr;
};

}  // namespace

struct Multiplier::Plan {
  Layout weight, x, y;
  Description description;
  cublasLtMatmulAlgo_t algorithm;
};

Multiplier::Multiplier() : workspace_(kWorkspaceBytes) { check(cublasLtCreate(&handle_), "start"); }

Multiplier::~Multiplier() {
  plans_.clear();
  cublasLtDestroy(handle_);
}

const Multiplier::Plan& Multiplier::plan(const Key& key) {
  if (const auto known = plans_.find(key); known != plans_.end()) return known->second;
  const auto [tokens, rows, cols, type, y_type] = key;
  Plan plan{.weight = Layout(type, rows, cols),
            .x = Layout(type, tokens, cols),
            .y = Layout(y_type, tokens, rows),
            .description = {},
            .algorithm = {}};
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "preference");
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &kWorkspaceBytes, sizeof(kWorkspaceBytes));
  cublasLtMatmulHeuristicResult_t result = {};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, plan.description.get(), plan.weight.get(), plan.x.get(), plan.y.get(), plan.y.get(),
      preference, 1, &result, &found);
  cublasLtMatmulPreferenceDestroy(preference);
  check(status, "choice of an algorithm");
  if (found == 0) {
    throw Error("cuBLASLt has no product of [{}, {}] {} with [{}, {}]", tokens, cols,
                dtype_name(type), rows, cols);
  }
  plan.algorithm = result.algo;
  return plans_.emplace(key, std::move(plan)).first->second;
}

void Multiplier::multiply(cudaStream_t stream, const MatMul& m) {
  const Plan& p = plan({m.tokens, m.weight.shape[0], m.weight.shape[1], m.weight.dtype, m.y_type});
  const float one = 1, beta = m.accumulate ? 1 : 0;
  check(cublasLtMatmul(handle_, p.description.get(), &one, m.weight.data, p.weight.get(), m.x,
                       p.x.get(), &beta, m.y, p.y.get(), m.y, p.y.get(), &p.algorithm,
                       workspace_.get(), kWorkspaceBytes, stream),
        "product");
}

}  // namespace gsa::cuda
