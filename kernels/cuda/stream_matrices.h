// Matrices as the copy engine of compute capability 9.0 knows them.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace gsa::cuda {

constexpr int kBoxColumns = 64;  // of a block: 128 bytes

// A matrix [rows, columns] of row-major bfloat16 in device memory as [blocks of kBoxColumns
// columns][rows][kBoxColumns]. A copy takes a box of [blocks][box_rows][kBoxColumns] to shared
// memory, where 16 bytes number c of a row stand at place c ^ (number of the 128 bytes mod 8).
// REQUIRES: columns is a multiple of kBoxColumns; data of 16 bytes.
CUtensorMap stream_matrix(const __nv_bfloat16* data, int64_t rows, int64_t columns, int box_rows,
                          int blocks);

}  // namespace gsa::cuda
