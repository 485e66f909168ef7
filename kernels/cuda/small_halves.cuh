// Activations of four tokens as bfloat16 halves, for products with tiles of small weights
// (small_tiles.cuh): to make digits of so many takes longer than to make bfloat16 of the weights.
#pragma once

#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda {

// Stores the sum of the activations of each group of a token, of which every lane has four, as
// halves of TF32: this lane's group at `to`, the low half so many floats further.
__device__ __forceinline__ void store_group_sum(const uint2& front, const uint2& back, float* to,
                                                int to_low) {
  const int lane = threadIdx.x % 8;
  const float sum = warp_sum<8>(pair_sum(front) + pair_sum(back));
  const float part = tf32_part(sum);
  if (lane == 0) to[0] = part;
  if (lane == 1) to[to_low] = tf32_part(sum - part);
}

template <DType kType>
class HalvesSums;

// In shared memory: [token][high and low][column], whose sum is the value, and for q4 the sums of
// all groups as two halves of TF32. The pitches leave rows that are read together in different
// banks.
template <DType kType>
class HalvesPanel {
 public:
  static constexpr int kTokens = 4;
  using Sums = HalvesSums<kType>;

  __device__ HalvesPanel(unsigned char* memory, int tiles)
      : pitch_(pitch_of(tiles)),
        sums_pitch_(sums_pitch_of(tiles)),
        x_(reinterpret_cast<__nv_bfloat16*>(memory)),
        sums_(reinterpret_cast<float*>(x_ + 2 * kTokens * pitch_)) {}
  static size_t bytes(int tiles) {
    const size_t row = sizeof(__nv_bfloat16) * pitch_of(tiles);
    return 2 * kTokens * (row + (kSums ? sizeof(float) * sums_pitch_of(tiles) : 0));
  }

  // Takes four activations of a token for each lane, those of a whole tile for the warp.
  __device__ __forceinline__ void keep(int t, int tile, const float4& x) const {
    const int lane = threadIdx.x % 32;
    __nv_bfloat16* to = x_ + 2 * t * pitch_ + tile * SmallTile::kColumns + lane * 4;
    const uint2 front = split_pair(x.x, x.y), back = split_pair(x.z, x.w);
    store_halves(front, back, to, to + pitch_);
    if constexpr (kSums) {
      store_group_sum(front, back,
                      sums_ + 2 * t * sums_pitch_ + tile * SmallTile::kGroups + lane / 8,
                      sums_pitch_);
    }
  }

  // This lane's part at a tile: lane 4 n + j reads column n of the products, which is the high or
  // the low half of a token.
  struct Operand {
    const __nv_bfloat16* x;  // of columns 8 j to 8 j + 7
    const float* sums;       // of q4, of group j

    __device__ __forceinline__ uint4 columns(int group) const {
      return *reinterpret_cast<const uint4*>(x + group * QuantizedRow::kGroup);
    }
    __device__ __forceinline__ float sum() const { return *sums; }
    __device__ __forceinline__ void next() {
      x += SmallTile::kColumns;
      sums += SmallTile::kGroups;
    }
  };
  __device__ __forceinline__ Operand operand(int tile) const {
    const int n = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
    return {.x = x_ + n * pitch_ + tile * SmallTile::kColumns + 8 * j,
            .sums = sums_ + n * sums_pitch_ + tile * SmallTile::kGroups + j};
  }

 private:
  static constexpr bool kSums = kType == DType::kQ4;

  __host__ __device__ static constexpr int pitch_of(int tiles) {
    return tiles * SmallTile::kColumns + 32;
  }
  __host__ __device__ static constexpr int sums_pitch_of(int tiles) {
    return tiles * SmallTile::kGroups + 4;
  }

  int pitch_, sums_pitch_;
  __nv_bfloat16* x_;
  float* sums_;
};

// Sums of products of 16 rows with the four tokens: see DigitsSums. Column 2 t of the products is
// the high half of token t, and 2 t + 1 the low one.
template <DType kType>
class HalvesSums {
 public:
  template <typename Operand>
  __device__ __forceinline__ void add(const unsigned char* upper, const unsigned char* lower,
                                      const Operand& x) {
    add_tile<kType>(upper, lower, x, sums_);
  }

  template <typename Take>
  __device__ __forceinline__ void finish(const Take& take) const {
    take(static_cast<int>(threadIdx.x % 4), sums_[0] + sums_[1], sums_[2] + sums_[3]);
  }

 private:
  float sums_[4] = {};
};

}  // namespace gsa::cuda
