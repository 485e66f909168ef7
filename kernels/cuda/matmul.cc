#include "kernels/cuda/matmul.h"

#include <algorithm>
#include <cassert>
#include <limits>

#include "kernels/cuda/small_weights.h"

namespace gsa::cuda {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
// Of bfloat16 weights at a time: enough rows for a wave of blocks, little enough to stay in a
// large cache between widening and product.
constexpr size_t kPanelBytes = size_t{32} << 20;
constexpr uint32_t kAlignment = 256;  // of all operands, where y does not say otherwise
constexpr int kCandidates = 8;
constexpr int kTrials = 3;  // of each; the first loads the kernel and is not counted

// Sizes that come again and again: steps of decoding, filled up as the backend does it, and full
// steps of prompts. They are worth trying out what is fastest.
bool is_common(int64_t tokens) { return tokens % (tokens <= 256 ? 8 : 256) == 0; }

int64_t panel_rows(const TensorView& weight) {
  const int64_t row = weight.shape[1] * static_cast<int64_t>(dtype_bytes(DType::kBF16));
  const int64_t most = std::max<int64_t>(static_cast<int64_t>(kPanelBytes) / row / 128, 1) * 128;
  return std::min(most, weight.shape[0]);
}

int64_t stride_of(const MatMul& m) { return m.y_stride == 0 ? m.weight.shape[0] : m.y_stride; }

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

std::vector<cublasLtMatmulAlgo_t> Multiplier::candidates(const Plan& plan, uint32_t y_alignment,
                                                         int most, bool whole) const {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "preference");
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value));
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kWorkspaceBytes);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y_alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y_alignment);
  if (whole) set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{0});
  std::vector<cublasLtMatmulHeuristicResult_t> results(most);
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, plan.description.get(), plan.weight.get(), plan.x.get(), plan.y.get(), plan.y.get(),
      preference, most, results.data(), &found);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) check(status, "choice of an algorithm");
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) algorithms.push_back(results[i].algo);
  return algorithms;
}

// Those that do not split the columns give the same bits, so that it does not show in what is
// computed which of them happens to be faster today.
const Multiplier::Plan& Multiplier::plan(cudaStream_t stream, const MatMul& m) {
  const int64_t rows = m.weight.shape[0], cols = m.weight.shape[1];
  const DType type = m.weight.dtype;
  const Key key{m.tokens, rows, cols, type, m.y_type, stride_of(m), alignment_of(m.y)};
  if (const auto known = plans_.find(key); known != plans_.end()) return known->second;
  Plan plan{.weight = Layout(type, rows, cols, cols),
            .x = Layout(type, m.tokens, cols, cols),
            .y = Layout(m.y_type, m.tokens, rows, stride_of(m)),
            .description = {},
            .algorithm = {}};
  std::vector<cublasLtMatmulAlgo_t> found;
  if (is_common(m.tokens)) found = candidates(plan, alignment_of(m.y), kCandidates, true);
  if (found.empty()) found = candidates(plan, alignment_of(m.y), 1, false);
  if (found.empty()) {
    throw Error("cuBLASLt has no product of [{}, {}] {} with [{}, {}]", m.tokens, cols,
                dtype_name(type), rows, cols);
  }
  plan.algorithm = found[0];
  if (found.size() > 1) choose(stream, m, found, plan);
  return plans_.emplace(key, std::move(plan)).first->second;
}

void Multiplier::choose(cudaStream_t stream, const MatMul& m,
                        std::span<const cublasLtMatmulAlgo_t> candidates, Plan& plan) {
  MatMul trial = m;
  DeviceArray<std::byte> scratch;
  if (m.accumulate) {
    const size_t bytes = m.tokens * stride_of(m) * dtype_bytes(m.y_type);
    scratch = DeviceArray<std::byte>(bytes);
    GSA_CUDA_CHECK(cudaMemsetAsync(scratch.get(), 0, bytes, stream));
    trial.y = scratch.get();
  }
  Event begin, end;
  GSA_CUDA_CHECK(cudaEventCreate(begin.out()));
  GSA_CUDA_CHECK(cudaEventCreate(end.out()));
  std::vector<float> fastest(candidates.size(), std::numeric_limits<float>::infinity());
  for (int round = 0; round < kTrials; ++round) {
    for (size_t i = 0; i < candidates.size(); ++i) {
      plan.algorithm = candidates[i];
      // In a step the weight comes from memory, not from the cache.
      GSA_CUDA_CHECK(cudaMemsetAsync(workspace_.get(), 0, kWorkspaceBytes, stream));
      GSA_CUDA_CHECK(cudaEventRecord(begin.get(), stream));
      run(stream, trial, plan);
      GSA_CUDA_CHECK(cudaEventRecord(end.get(), stream));
      GSA_CUDA_CHECK(cudaEventSynchronize(end.get()));
      float milliseconds = 0;
      GSA_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.get(), end.get()));
      if (round > 0) fastest[i] = std::min(fastest[i], milliseconds);
    }
  }
  plan.algorithm = candidates[std::ranges::min_element(fastest) - fastest.begin()];
}

void Multiplier::expect(const TensorView& weight) {
  if (!is_quantized(weight.dtype)) return;
  const TensorView panel(nullptr, DType::kBF16, {panel_rows(weight), weight.shape[1]});
  panel_bytes_ = std::max(panel_bytes_, panel.bytes());
}

void Multiplier::reserve() { panel_ = DeviceArray<std::byte>(panel_bytes_); }

void Multiplier::multiply(cudaStream_t stream, const MatMul& m) {
  if (is_quantized(m.weight.dtype)) return multiply_small(stream, m);
  run(stream, m, plan(stream, m));
}

void Multiplier::run(cudaStream_t stream, const MatMul& m, const Plan& p) {
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
    part.y_stride = stride_of(m);
    multiply(stream, part);
  }
}

}  // namespace gsa::cuda
