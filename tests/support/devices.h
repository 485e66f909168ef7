#pragma once

#include <cstdlib>
#include <memory>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/error.h"

namespace gsa::test {

// The devices that one test body runs on; the names stand in the names of the tests, by which
// ctest labels those of "cuda".
inline const std::vector<std::string> kDevices = {"cpu", "cuda"};

// A backend, or null where the device is absent: then the running test is marked as skipped, or as
// failed if GSA_REQUIRE_CUDA=1 says that this machine has a GPU. To be called from SetUp(), so that
// the body does not run.
inline std::unique_ptr<Backend> make_backend_or_skip(const std::string& device, int threads = 2) {
  try {
    return make_backend(device, threads);
  } catch (const Error& error) {
    const char* required = std::getenv("GSA_REQUIRE_CUDA");
    if (device != "cuda" || (required != nullptr && required == std::string_view("1"))) {
      [&] { FAIL() << error.what(); }();
    } else {
      [&] { GTEST_SKIP() << error.what(); }();
    }
    return nullptr;
  }
}

// A device and the type in which large matrices are stored.
struct DeviceType {
  std::string device;
  DType dtype;
};

inline std::vector<DeviceType> device_types() {
  std::vector<DeviceType> all;
  for (const std::string& device : kDevices) {
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) all.push_back({device, dtype});
  }
  return all;
}

// The same without float32.
inline std::vector<DeviceType> types_of_16_bits() {
  std::vector<DeviceType> types = device_types();
  std::erase_if(types, [](const DeviceType& t) { return t.dtype == DType::kF32; });
  return types;
}

// device_types() with the types that only large matrices have.
inline std::vector<DeviceType> matrix_types() {
  std::vector<DeviceType> all = device_types();
  for (const std::string& device : kDevices) {
    for (DType dtype : {DType::kQ8, DType::kQ4}) all.push_back({device, dtype});
  }
  return all;
}

inline void PrintTo(const DeviceType& param, std::ostream* out) {
  *out << param.device << ' ' << dtype_name(param.dtype);
}

inline std::string device_name(const testing::TestParamInfo<std::string>& info) {
  return info.param;
}

inline std::string device_type_name(const testing::TestParamInfo<DeviceType>& info) {
  return info.param.device + "_" + std::string(dtype_name(info.param.dtype));
}

// Tests over the devices. The body makes its backends with backend().
class DeviceTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { make_backend_or_skip(GetParam()); }
  const std::string& device() const { return GetParam(); }
  std::unique_ptr<Backend> backend(int threads = 2) const {
    return make_backend(GetParam(), threads);
  }
};

// The same over the devices and the types of weights.
class DeviceTypeTest : public testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override { make_backend_or_skip(GetParam().device); }
  const std::string& device() const { return GetParam().device; }
  DType dtype() const { return GetParam().dtype; }
  std::unique_ptr<Backend> backend(int threads = 2) const {
    return make_backend(GetParam().device, threads);
  }
};

// How an operation is computed, as far as that decides how exact it can be.
enum class Form {
  kExact,    // copies and widens
  kProduct,  // sums of products of weights, for so many rows as matrix-vector kernels take
  kBatch,    // the same for more rows, of bfloat16 and small weights
  kWide,     // the same for still more rows
  kDecode,   // the recurrence, one token of each sequence
  kChunk,    // the recurrence over several tokens of a sequence
};

// A batch has vectors of eight columns (and of eight rows of gates), bfloat16 pieces of 64.
inline Form product_form(DType dtype, int64_t rows, int64_t columns) {
  if (rows <= 4) return Form::kProduct;
  if (rows > 16) return Form::kWide;
  if (is_quantized(dtype)) return columns % 8 == 0 ? Form::kBatch : Form::kProduct;
  return dtype == DType::kBF16 && columns % 64 == 0 ? Form::kBatch : Form::kWide;
}

// What a product of so many rows stores its activations as: as float32, except in the batched and
// the wide form of a GPU.
inline DType operand_type(const std::string& device, DType weight, int64_t rows, int64_t columns) {
  if (device == "cpu" || product_form(weight, rows, columns) == Form::kProduct) return DType::kF32;
  return is_quantized(weight) ? DType::kBF16 : weight;
}

// What it makes of its weights: kF32 where it takes them as they are.
inline DType weight_type(const std::string& device, DType weight, int64_t rows, int64_t columns) {
  const bool widened =
      device != "cpu" && is_quantized(weight) && product_form(weight, rows, columns) == Form::kWide;
  return widened ? DType::kBF16 : DType::kF32;
}

// What a gated MLP stores of gate and up: the batched form takes both of a row to one product.
inline DType between_type(const std::string& device, DType weight, int64_t rows, int64_t columns) {
  if (product_form(weight, rows, columns) == Form::kBatch) return DType::kF32;
  return operand_type(device, weight, rows, columns);
}

// The largest relative error (norm of the difference by norm of what is right, of any one row) that
// the arithmetic of the form can give; weights are exact in both, whatever their type.
//
// float32 sums of n products whose roundings are independent err by about sqrt(n) 2^-25, which is
// 1.4e-6 for n = 2048, less where vector lanes sum apart; SiLU, norms and the recurrence add a few
// 2^-24; on the GPU's tensor cores activations are two bf16 halves, 2^-18 rms. There, in the wide
// form, 32-bit weights are multiplied as TF32 (11 bits of significand: 2^-12 / sqrt(3) = 1.4e-4 rms
// an operand, five times that for what the exponentials of softmax and gates make of it, and 3 as
// the margin of a row over the mean), 16-bit weights by activations rounded to bf16 (2^-9 / sqrt(3)
// = 1.1e-3 rms, twice in a gated MLP, the same margin), q8 and q4 weights rounded to bf16 by such
// activations (sqrt(2) times that). The batched form multiplies bf16, q8 and q4 weights as they are
// by such activations. Chunks of the recurrence are TF32 products.
inline double tolerance(const std::string& device, DType dtype, Form form) {
  if (form == Form::kExact) return 0;
  if (device == "cpu") return form == Form::kDecode || form == Form::kChunk ? 1e-5 : 2e-6;
  if (form == Form::kProduct || form == Form::kDecode) return 1e-5;
  if (form == Form::kWide && is_quantized(dtype)) return 7e-3;
  return dtype == DType::kF32 ? 2e-3 : 5e-3;
}

// One step of these operations, which a backend may replay only where step.model says that they are
// the same again.
template <typename Operations>
void run_step(Backend& backend, const Step& step, Operations&& operations) {
  bool issue = backend.begin_step(step);
  do {
    if (issue) operations();
    issue = backend.end_step();
  } while (issue);
}

}  // namespace gsa::test
