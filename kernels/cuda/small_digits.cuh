// Activations as integers, and their products with a tile of small weights (small_weights.h).
//
// The activations of 128 columns, those of a tile, are numbers of 22 bits times a power of two that
// their largest one sets. A number is written in three digits to the base 256, each an int8, so
// that products with the integers of the weights are exact in int32, and nothing has to be made of
// the weights: tensor cores take them as they lie. A digit of the activations is a column of the
// product; eight columns are the digits of two tokens.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda {

constexpr int kDigitBase = 256;

// a b for int8 a [16, 32], b [32, 8].
__device__ __forceinline__ void multiply_int8(const uint4& a, uint32_t b0, uint32_t b1,
                                              int (&d)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%10, %10, %10, %10};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1), "r"(0));
}

// A float32 whose lowest bits are those of an integer that is added, up to 2^22 on both sides.
constexpr float kIntegerFloat = 0x1.8p23f;
constexpr uint32_t kIntegerBits = 0x4b400000;

// The digits of four integers, to each of which kIntegerFloat was added, the lowest first, each as
// a word in the order in which the integers of a tile lie: the first, the third, the second and the
// fourth.
__device__ __forceinline__ void digits_of(const float (&v)[4], uint32_t (&digits)[kDigits]) {
  constexpr uint32_t kHalves = 0x808080, kSigns = 0x80808080;
  uint32_t n[4];  // bytes of 128 more than the digits
#pragma unroll
  for (int i = 0; i < 4; ++i) n[i] = __float_as_uint(v[i]) - kIntegerBits + kHalves;
  const uint32_t front = __byte_perm(n[0], n[2], 0x5140), back = __byte_perm(n[1], n[3], 0x5140);
  digits[0] = __byte_perm(front, back, 0x5410) ^ kSigns;
  digits[1] = __byte_perm(front, back, 0x7632) ^ kSigns;
  digits[2] =
      __byte_perm(__byte_perm(n[0], n[2], 0x0062), __byte_perm(n[1], n[3], 0x0062), 0x5410) ^
      kSigns;
}

// The larger absolute value; of a NaN and a number the NaN.
__device__ __forceinline__ float larger(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(fabsf(x)), "f"(fabsf(y)));
  return z;
}

template <DType kType, int kTokens>
class DigitsSums;

// Activations of one or two tokens in shared memory.
template <DType kType, int kTokens>
class DigitsPanel {
 public:
  static_assert(kTokens <= 2);
  using Sums = DigitsSums<kType, kTokens>;

  __device__ DigitsPanel(unsigned char* memory, int tiles)
      : pitch_(tiles * SmallTile::kColumns + kDigitsPad),
        digits_(memory),
        scales_(reinterpret_cast<float*>(memory + kTokens * kDigits * pitch_)),
        sums_(scales_ + tiles * kTokens) {}
  static size_t bytes(int tiles) { return digits_bytes(kType, kTokens, tiles); }

  // Takes four activations of a token for each lane, those of a whole tile for the warp.
  __device__ __forceinline__ void keep(int t, int tile, const float4& x) const {
    const int lane = threadIdx.x % 32;
    const float most_of_lane = larger(larger(larger(x.x, x.y), larger(x.z, x.w)), kLeast);
    // As bits, a NaN is more than all numbers.
    const uint32_t most = __reduce_max_sync(kAllLanes, __float_as_uint(most_of_lane));
    const uint32_t power = most & 0x7f800000u;  // more than the half of it
    const float inverse = __uint_as_float(((2 * 127 + kBits) << 23) - power);
    const float v[4] = {fmaf(x.x, inverse, kIntegerFloat), fmaf(x.y, inverse, kIntegerFloat),
                        fmaf(x.z, inverse, kIntegerFloat), fmaf(x.w, inverse, kIntegerFloat)};
    uint32_t digits[kDigits];
    digits_of(v, digits);
    unsigned char* to =
        digits_ + t * kDigits * pitch_ + tile * SmallTile::kColumns + place_of(lane);
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      *reinterpret_cast<uint32_t*>(to + d * pitch_) = digits[d];
    }
    if (lane == 0) {
      // What is infinite or not a number gives no number.
      const float largest = __uint_as_float(most);
      const float scale = __uint_as_float(power - (kBits << 23));
      scales_[tile * kTokens + t] = (largest - largest) + scale / SmallIntegers<kType>::kTimes;
    }
    if constexpr (kSums) {
      const float sum = warp_sum<8>((x.x + x.y) + (x.z + x.w));
      if (lane % 8 == 0) sums_[(tile * SmallTile::kGroups + lane / 8) * kTokens + t] = sum;
    }
  }

  // This lane's part at a tile: lane 4 n + j reads column n of the products.
  struct Operand {
    const unsigned char* digits;
    const float* scale;  // of the token of columns 2 j and 2 j + 1
    const float* sums;   // of q4, of group j, [tokens]

    __device__ __forceinline__ void next() {
      digits += SmallTile::kColumns;
      scale += kTokens;
      sums += SmallTile::kGroups * kTokens;
    }
  };
  __device__ __forceinline__ Operand operand(int tile) const {
    const int n = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
    const int row = (kTokens == 1 ? 0 : n / 4 * kDigits) + min(n % 4, kDigits - 1);
    return {.digits = digits_ + row * pitch_ + tile * SmallTile::kColumns + 16 * j,
            .scale = scales_ + tile * kTokens + (kTokens == 1 ? 0 : j / 2),
            .sums = sums_ + (tile * SmallTile::kGroups + j) * kTokens};
  }

 private:
  static constexpr bool kSums = kType == DType::kQ4;
  static constexpr uint32_t kBits = 21;  // of the largest number, but for its leading one
  static constexpr float kLeast = 0x1p-100f;

  // Of columns 4 lane to 4 lane + 3: a lane of a product reads 8 of one group and 8 of the next.
  __device__ static int place_of(int lane) {
    const int group = lane / 8, j = lane % 8 / 2;
    return group / 2 * 64 + j * 16 + group % 2 * 8 + lane % 2 * 4;
  }

  int pitch_;              // of a row of digits
  unsigned char* digits_;  // [kTokens][kDigits] rows, see place_of()
  float* scales_;          // [tiles][kTokens]
  float* sums_;            // of q4: [tiles][groups][kTokens]
};

// Sums of products of 16 rows with the tokens.
template <DType kType, int kTokens>
class DigitsSums {
 public:
  using Operand = typename DigitsPanel<kType, kTokens>::Operand;

  // Adds 128 columns of 8 rows, of tile `upper`, and of 8 others, of tile `lower`, both in shared
  // memory.
  __device__ __forceinline__ void add(const unsigned char* upper, const unsigned char* lower,
                                      const Operand& x) {
    using Tile = SmallTileOf<kType>;
    const int lane = threadIdx.x % 32;
    const RowScales<kType> upper_scales(upper), lower_scales(lower);
    SmallIntegers<kType> u, l;
    float above = 0, below = 0;
    uint4 digits;
#pragma unroll
    for (int group = 0; group < Tile::kGroups; ++group) {
      u.load(upper, lane, group);
      l.load(lower, lane, group);
      const uint2 of_upper = u.bytes(group), of_lower = l.bytes(group);
      const uint4 weights{of_upper.x, of_lower.x, of_upper.y, of_lower.y};
      if (group % 2 == 0) digits = *reinterpret_cast<const uint4*>(x.digits + group / 2 * 64);
      int d[4];
      multiply_int8(weights, group % 2 == 0 ? digits.x : digits.z,
                    group % 2 == 0 ? digits.y : digits.w, d);
      above += upper_scales[group] * static_cast<float>(d[0] + base_ * d[1]);
      below += lower_scales[group] * static_cast<float>(d[2] + base_ * d[3]);
    }
    above_ += *x.scale * above;
    below_ += *x.scale * below;
    if constexpr (kType == DType::kQ4) {
      const float of_upper = half_of_lane(upper + Tile::kMinima);
      const float of_lower = half_of_lane(lower + Tile::kMinima);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        minima_[t][0] += of_upper * x.sums[t];
        minima_[t][1] += of_lower * x.sums[t];
      }
    }
  }

  // Calls take(token, upper, lower) by one of the four lanes 4 g + j of row g.
  template <typename Take>
  __device__ __forceinline__ void finish(const Take& take) const {
    const int j = threadIdx.x % 4;
    const float factor = j % 2 == 0 ? 1 : kDigitBase * kDigitBase;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const bool own = j / 2 == t;
      float upper = own ? factor * above_ : 0;
      float lower = own ? factor * below_ : 0;
      if constexpr (kType == DType::kQ4) upper += minima_[t][0], lower += minima_[t][1];
#pragma unroll
      for (int offset = 1; offset < 4; offset *= 2) {
        upper += __shfl_xor_sync(kAllLanes, upper, offset);
        lower += __shfl_xor_sync(kAllLanes, lower, offset);
      }
      if (j == t) take(t, upper, lower);
    }
  }

 private:
  // Columns 2 j and 2 j + 1 of a product are the first and second digit, or the third and no other.
  const int base_ = threadIdx.x % 2 == 0 ? kDigitBase : 0;
  float above_ = 0, below_ = 0;
  float minima_[kTokens][2] = {};
};

}  // namespace gsa::cuda
