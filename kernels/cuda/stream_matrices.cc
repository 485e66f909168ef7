#include "kernels/cuda/stream_matrices.h"

#include <cudaTypedefs.h>

#include "kernels/cuda/common.cuh"

namespace gsa::cuda {
namespace {

// Of the driver, which a program is not linked with.
PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  GSA_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                  cudaEnableDefault, &found));
#else
  GSA_CUDA_CHECK(
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found));
#endif
  if (found != cudaDriverEntryPointSuccess) {
    throw Error("the driver of the GPU does not have cuTensorMapEncodeTiled");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

}  // namespace

CUtensorMap stream_matrix(const __nv_bfloat16* data, int64_t rows, int64_t columns, int box_rows,
                          int blocks) {
  static const auto encode = encoder();
  const cuuint64_t sizes[] = {kBoxColumns, static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(columns / kBoxColumns)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * sizeof(*data),
                                kBoxColumns * sizeof(*data)};
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows),
                            static_cast<cuuint32_t>(blocks)};
  const cuuint32_t steps[] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result =
      encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<__nv_bfloat16*>(data), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error("a matrix [{}, {}] cannot be described to the GPU (error {})", rows, columns,
                static_cast<int>(result));
  }
  return map;
}

}  // namespace gsa::cuda
