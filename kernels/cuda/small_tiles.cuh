// What a warp does with a tile of small weights (small_weights.h): integers become fragments of
// tensor-core products whose sums are float32, and groups are scaled when they have been summed.
//
// The product of a step is weights [16 rows, 16 columns] times activations [16 columns, 8]. The
// activations are split into two bfloat16 halves; the eight columns of a step are the high and the
// low halves of up to 4 tokens.
#pragma once

#include "kernels/cuda/halves.cuh"
#include "kernels/cuda/small_weights.h"

namespace gsa::cuda {

// d += a b for a [16, 8] and b [8, 8], which TF32 must hold exactly.
__device__ __forceinline__ void multiply_tf32(const float (&a)[4], float b0, float b1,
                                              float (&d)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// a & b | c, which the compiler makes two instructions of where b and c are constants.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// What TF32 holds of x; the rest is x minus this, and TF32 holds the most of that.
__device__ __forceinline__ float tf32_part(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}

// A lane's integers of a tile, as fragments: `pairs(group, p)` are two columns of its row, 8 j +
// 2 p and the one behind, in bfloat16. Those of q4 are 16 too large, see kOffset.
template <DType kType>
class SmallIntegers;

template <>
class SmallIntegers<DType::kQ8> {
 public:
  static constexpr float kOffset = 0;

  __device__ __forceinline__ void load(const unsigned char* tile, int lane, int group) {
    if (group % 2 == 0) words_ = reinterpret_cast<const uint4*>(tile)[group / 2 * 32 + lane];
  }
  // The lower seven bits under the exponent of 128 are 128 + those; the sign bit under the same
  // exponent is 128, or 256 where it is set.
  __device__ __forceinline__ uint32_t pairs(int group, int p) const {
    const uint32_t word =
        group % 2 == 0 ? (p < 2 ? words_.x : words_.y) : (p < 2 ? words_.z : words_.w);
    const uint32_t bytes = p % 2 == 0 ? word : word >> 8;
    const uint32_t low = and_or(bytes, 0x007f007fu, 0x43004300u);
    const uint32_t sign = and_or(bytes, 0x00800080u, 0x43004300u);
    const __nv_bfloat162 value = __hsub2(reinterpret_cast<const __nv_bfloat162&>(low),
                                         reinterpret_cast<const __nv_bfloat162&>(sign));
    return reinterpret_cast<const uint32_t&>(value);
  }
  // The integers of columns 8 j to 8 j + 3 and of 8 j + 4 to 8 j + 7, times kTimes: of each four
  // the first, the third, the second and the fourth.
  static constexpr float kTimes = 1;
  __device__ __forceinline__ uint2 bytes(int group) const {
    return group % 2 == 0 ? make_uint2(words_.x, words_.y) : make_uint2(words_.z, words_.w);
  }
  // The word of columns 8 j + 4 w to 8 j + 4 w + 3, from their integers.
  __host__ __device__ static uint32_t pack(const uint8_t (&v)[4]) {
    return v[0] | v[2] << 8 | v[1] << 16 | static_cast<uint32_t>(v[3]) << 24;
  }

 private:
  uint4 words_;
};

template <>
class SmallIntegers<DType::kQ4> {
 public:
  // Four bits below the exponent of 16 are 16 + those. To take the 16 away again is dearer than to
  // leave it: the sum of a group's activations is needed for the minimum anyway.
  static constexpr float kOffset = 16;

  __device__ __forceinline__ void load(const unsigned char* tile, int lane, int group) {
    if (group == 0) words_ = reinterpret_cast<const uint4*>(tile)[lane];
  }
  __device__ __forceinline__ uint32_t pairs(int group, int p) const {
    return and_or(rotated(group, p % 2 * 8 + p / 2 * 4), 0x00780078u, 0x41804180u);
  }
  // Where they lie, they are eight times themselves.
  static constexpr float kTimes = 8;
  __device__ __forceinline__ uint2 bytes(int group) const {
    return make_uint2(rotated(group, 0) & 0x78787878u, rotated(group, 4) & 0x78787878u);
  }
  // The word of a group's columns 8 j to 8 j + 7: those of the first four in the lower halves of
  // the bytes, rotated by three bits.
  __host__ __device__ static uint32_t pack(const uint8_t (&v)[8]) {
    uint32_t word = 0;
    for (int i = 0; i < 8; ++i) {
      word |= static_cast<uint32_t>(v[i]) << (i % 2 * 16 + i / 2 % 2 * 8 + i / 4 * 4);
    }
    return word << 3 | word >> 29;
  }

 private:
  __device__ __forceinline__ uint32_t rotated(int group, int right) const {
    const uint32_t word =
        group < 2 ? (group == 0 ? words_.x : words_.y) : (group == 2 ? words_.z : words_.w);
    return __funnelshift_r(word, word, right);
  }

  uint4 words_;
};

// The lane's eight columns of a group in bfloat16.
template <DType kType>
__device__ __forceinline__ uint4 columns_of(const SmallIntegers<kType>& integers, int group) {
  return make_uint4(integers.pairs(group, 0), integers.pairs(group, 1), integers.pairs(group, 2),
                    integers.pairs(group, 3));
}

// Copies a pair of tiles, one behind the other, into shared memory; by the lanes of a warp, to each
// of which all three pointers are those of its first 16 bytes.
template <DType kType>
__device__ __forceinline__ void copy_pair(unsigned char* to, const unsigned char* upper,
                                          const unsigned char* lower) {
  constexpr int kBytes = SmallTileOf<kType>::kBytes, kStep = 32 * 16;  // of a warp at once
  const int lane = threadIdx.x % 32 * 16;
#pragma unroll
  for (int v = 0; v < 2 * kBytes; v += kStep) {
    if (v + kStep > 2 * kBytes && v + lane >= 2 * kBytes) continue;
    const bool of_upper = v + kStep <= kBytes || (v < kBytes && v + lane < kBytes);
    copy_async(to + v, (of_upper ? upper : lower - kBytes) + v);
  }
}

// This lane's one of a tile's scales or minima, those of row g and group j.
__device__ __forceinline__ float half_of_lane(const unsigned char* halves) {
  return __half2float(reinterpret_cast<const __half*>(halves)[threadIdx.x % 32]);
}

// The scales of this lane's row of a tile in shared memory.
template <DType kType>
class RowScales {
 public:
  __device__ explicit RowScales(const unsigned char* tile)
      : four_(*reinterpret_cast<const uint2*>(tile + SmallTileOf<kType>::kScales +
                                              threadIdx.x % 32 / 4 * 8)) {}
  __device__ __forceinline__ float operator[](int group) const {
    const uint32_t two = group < 2 ? four_.x : four_.y;
    const __half2 both = reinterpret_cast<const __half2&>(two);
    return group % 2 == 0 ? __low2float(both) : __high2float(both);
  }

 private:
  uint2 four_;
};

// sums += weights times activations for 16 rows, the 8 of tile `upper` and the 8 of
// tile `lower` (in shared memory), and 128 columns. A lane 4 g + j has the sums of columns 2 j and
// 2 j + 1 of the product for row g of the upper tile, then for row g of the lower one. The operand
// gives columns(group), columns 8 j to 8 j + 7 of a group for column n of the product in lane 4 n +
// j, and for q4 sum(), the sum of the activations of group j, as TF32 halves.
template <DType kType, typename Operand>
__device__ __forceinline__ void add_tile(const unsigned char* upper, const unsigned char* lower,
                                         const Operand& operand, float (&sums)[4]) {
  using Tile = SmallTileOf<kType>;
  const int lane = threadIdx.x % 32;
  const RowScales<kType> upper_scales(upper), lower_scales(lower);
  SmallIntegers<kType> u, l;
#pragma unroll
  for (int group = 0; group < Tile::kGroups; ++group) {
    u.load(upper, lane, group);
    l.load(lower, lane, group);
    const float upper_scale = upper_scales[group], lower_scale = lower_scales[group];
    float d[4] = {0, 0, 0, 0};
    add_group(columns_of(u, group), columns_of(l, group), operand.columns(group), d);
    sums[0] += upper_scale * d[0];
    sums[1] += upper_scale * d[1];
    sums[2] += lower_scale * d[2];
    sums[3] += lower_scale * d[3];
  }
  if constexpr (kType == DType::kQ4) {
    // Minimum minus offset times scale, times the sum of a group: a product over the four groups.
    const float a[4] = {half_of_lane(upper + Tile::kMinima), half_of_lane(lower + Tile::kMinima),
                        half_of_lane(upper + Tile::kScales), half_of_lane(lower + Tile::kScales)};
    const float sum = operand.sum();
    multiply_tf32(a, sum, -SmallIntegers<kType>::kOffset * sum, sums);
  }
}

// One weight of a matrix in tiles.
template <DType kType>
__device__ __forceinline__ float small_weight(const unsigned char* tiles, int across, int row,
                                              int column) {
  using Tile = SmallTileOf<kType>;
  const unsigned char* tile =
      tiles + (int64_t{row / Tile::kRows} * across + column / Tile::kColumns) * Tile::kBytes;
  const int g = row % Tile::kRows, group = column % Tile::kColumns / 32, c = column % 32;
  const int lane = 4 * g + c / 8, pair = c % 8 / 2;
  SmallIntegers<kType> integers;
  integers.load(tile, lane, group & (kType == DType::kQ8 ? ~1 : 0));
  const uint32_t two = integers.pairs(group, pair);
  const float n = __uint_as_float(c % 2 == 0 ? two << 16 : two & 0xffff0000u);
  const auto half_at = [&](int offset) {
    return __half2float(reinterpret_cast<const __half*>(tile + offset)[g * Tile::kGroups + group]);
  };
  const float scale = half_at(Tile::kScales);
  const float weight = scale * (n - SmallIntegers<kType>::kOffset);
  if constexpr (kType == DType::kQ8) return weight;
  return weight + half_at(Tile::kMinima);
}

}  // namespace gsa::cuda
