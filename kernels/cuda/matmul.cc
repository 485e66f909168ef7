#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/small_weights.h"

namespace gsa::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
// Of bfloat16 weights at a time: enough rows for a wave of blocks, little enough to stay in a
// large cache between widening and product.
constexpr size_t kPanelBytes = size_t{32} << 20;
constexpr uint32_t kAlignment = 256;  // of all operands, where y does not say otherwise

int64_t panel_rows(const TensorView& weight) {
  const int64_t row = weight.shape[1] * static_cast<int64_t>(dtype_bytes(DType::kBF16));
  const int64_t most = std::max<int64_t>(static_cast<int64_t>(kPanelBytes) / row / 128, 1) * 128;
  return std::min(most, weight.shape[0]);
}

uint32_t alignment_of(const void* pointer) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(pointer) | kAlignment;
  return static_cast<uint32_t>(bits & -bits);
}

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
  Layout(DType dtype, int64_t rows, int64_t cols, int64_t stride) {
    check(cublasLtMatrixLayoutCreate(&layout_, data_type(dtype), cols, rows, stride), "layout");
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
  const auto [tokens, rows, cols, type, y_type, y_stride, y_alignment] = key;
  Plan plan{.weight = Layout(type, rows, cols, cols),
            .x = Layout(type, tokens, cols, cols),
            .y = Layout(y_type, tokens, rows, y_stride),
            .description = {},
            .algorithm = {}};
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "preference");
  cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                       &kWorkspaceBytes, sizeof(kWorkspaceBytes));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    cublasLtMatmulPreferenceSetAttribute(preference, attribute, &y_alignment, sizeof(y_alignment));
  }
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

void Multiplier::expect(const TensorView& weight) {
  if (!is_quantized(weight.dtype)) return;
  const TensorView panel(nullptr, DType::kBF16, {panel_rows(weight), weight.shape[1]});
  panel_bytes_ = std::max(panel_bytes_, panel.bytes());
}

void Multiplier::reserve() { panel_ = DeviceArray<std::byte>(panel_bytes_); }

void Multiplier::multiply(cudaStream_t stream, const MatMul& m) {
  if (is_quantized(m.weight.dtype)) return multiply_small(stream, m);
  const int64_t rows = m.weight.shape[0];
  const Plan& p = plan({m.tokens, rows, m.weight.shape[1], m.weight.dtype, m.y_type,
                        m.y_stride == 0 ? rows : m.y_stride, alignment_of(m.y)});
  const float one = 1, beta = m.accumulate ? 1 : 0;
  check(cublasLtMatmul(handle_, p.description.get(), &one, m.weight.data, p.weight.get(), m.x,
                       p.x.get(), &beta, m.y, p.y.get(), m.y, p.y.get(), &p.algorithm,
                       workspace_.get(), kWorkspaceBytes, stream),
        "product");
}

void Multiplier::multiply_small(cudaStream_t stream, const MatMul& m) {
  const int64_t rows = m.weight.shape[0], step = panel_rows(m.weight);
  for (int64_t first = 0; first < rows; first += step) {
    const int64_t count = std::min(step, rows - first);
    widen_small({.stream = stream}, m.weight, first, count, panel_.get());
    MatMul part = m;
    part.weight = TensorView(panel_.get(), DType::kBF16, {count, m.weight.shape[1]});
    part.y = static_cast<std::byte*>(m.y) + first * dtype_bytes(m.y_type);
    part.y_stride = m.y_stride == 0 ? rows : m.y_stride;
    multiply(stream, part);
  }
}

}  // namespace gsa::cuda
