#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/tensor.h"

namespace gsa {

// Stores `rows` rows of floats [rows, columns] as q8 or q4 (kernels/quantized.h). Each
// group's scale, and minimum, are those of a few starting points that, fitted to the integers by
// least squares, leave the smallest sum of squared errors.
//
// Returns null, or the first value that is not finite or too large for float16 scales (32,752).
const float* quantize_rows(const float* values, int64_t rows, int64_t columns, DType type,
                           std::byte* out);

}  // namespace gsa
