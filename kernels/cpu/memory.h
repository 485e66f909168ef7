#pragma once

#include <cstdint>

#include "kernels/tensor.h"

namespace gsa::cpu {

// Writes a run of tokens, in order, into a block of rows x columns of one head's memory, and reads
// it after each write for the query heads that share it:
//
//   memory[r, c] = memory[r, c] * keep + row_write[r] * column_write[c]
//   sums[h, c] += query[h, r] * memory[r, c]       (r ascending, continuing what sums holds)
//
// A memory of 16 bits is rounded to nearest even by every write, and then read as it is stored.
// `keep` belongs to the columns (Hk: columns are slots) or to the rows (Hv: rows are slots). Each
// element and each sum is computed in the same order whatever the blocks and however the tokens
// are cut into calls.
struct MemoryBlock {
  DType type = DType::kF32;  // f32, f16 or bf16
  void* memory = nullptr;    // [rows, stride], the head's
  int64_t stride = 0;
  int64_t row_begin = 0, row_end = 0;
  int64_t column_begin = 0, column_end = 0;

  int64_t tokens = 0;
  int64_t heads = 0;  // query heads that read this memory
  bool keep_by_row = false;

  // Of the first token; the next one's lie *_step floats on.
  const float* keep = nullptr;  // [columns] or [rows]
  int64_t keep_step = 0;
  const float* row_write = nullptr;  // [rows]
  int64_t row_write_step = 0;
  const float* column_write = nullptr;  // [columns]
  int64_t column_write_step = 0;
  const float* query = nullptr;  // [heads, query_stride >= rows]
  int64_t query_stride = 0;
  int64_t query_step = 0;
  float* sums = nullptr;  // [heads, sums_stride >= columns]
  int64_t sums_stride = 0;
  int64_t sums_step = 0;
};

void write_and_read(const MemoryBlock& block);

}  // namespace gsa::cpu
