// Matrices of q8 and q4 weights as the GPU keeps them.
//
// A matrix is cut into tiles of 8 rows and 128 columns, the last ones filled up with zeros, and the
// tiles of the same rows lie one behind the other. So whatever part of a matrix a block works on,
// it reads whole lines of memory, and a tile brings its scales along. Inside of a tile everything
// lies as the lanes of a warp take it for products of 16 x 16 weights with bfloat16 activations
// (small_tiles.cuh) and of 16 x 32 with integer ones (small_digits.cuh): lane 4 g + j has row g,
// and columns 8 j to 8 j + 7 of each group of 32.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/common.cuh"
#include "kernels/quantized.h"
#include "kernels/tensor.h"

namespace gsa::cuda {

struct SmallTile {
  static constexpr int kRows = 8;
  static constexpr int kColumns = 128;
  static constexpr int kGroups = kColumns / QuantizedRow::kGroup;

  // How many lie beside each other, and below each other.
  static constexpr int64_t across(int64_t columns) { return (columns + kColumns - 1) / kColumns; }
  static constexpr int64_t down(int64_t rows) { return (rows + kRows - 1) / kRows; }
};

// Where the parts of a tile begin. First come the integers, 16 bytes for each lane: of q4 4 for
// each group; of q8 8 for each of the first two groups, and behind all lanes' the same for the
// others.
template <DType kType>
struct SmallTileOf : SmallTile {
  static constexpr int kScales = kRows * kGroups * (kType == DType::kQ8 ? 32 : 16);
  static constexpr int kHalvesBytes = kRows * kGroups * 2;  // float16 [kRows][kGroups]
  static constexpr int kMinima = kScales + kHalvesBytes;    // of q4
  static constexpr int kBytes = kMinima + (kType == DType::kQ4 ? kHalvesBytes : 0);
  static_assert(kBytes % 16 == 0);
};

// Whether so many tokens' activations are digits for products of small weights (small_digits.cuh),
// or halves (small_halves.cuh), which are made faster but take more instructions in the products.
constexpr bool as_digits(DType type, int tokens) { return is_quantized(type) && tokens <= 2; }

// Bytes of the activations of so many columns of tiles as digits.
constexpr int kDigits = 3;
constexpr int kDigitsPad = 64;  // of a row, so that neighbours are in different banks
constexpr int digits_bytes(DType type, int tokens, int tiles) {
  const int floats = tiles * tokens * (type == DType::kQ4 ? 1 + SmallTile::kGroups : 1);
  return tokens * kDigits * (tiles * SmallTile::kColumns + kDigitsPad) +
         floats * static_cast<int>(sizeof(float));
}

// Bytes of a matrix [rows, columns] in tiles.
inline size_t small_bytes(const TensorView& weight) {
  return SmallTile::down(weight.shape[0]) * SmallTile::across(weight.shape[1]) *
         (weight.dtype == DType::kQ8 ? SmallTileOf<DType::kQ8>::kBytes
                                     : SmallTileOf<DType::kQ4>::kBytes);
}

// Puts a matrix as files hold it (kernels/quantized.h; in device memory) into tiles.
void pack_small(const Launch& how, const TensorView& stored, void* tiles);

// Rows [first, first + count) of a matrix in tiles as bfloat16 [count, columns], rounded.
// REQUIRES: first is a multiple of kRows.
void widen_small(const Launch& how, const TensorView& weight, int64_t first, int64_t count,
                 void* out);

}  // namespace gsa::cuda
