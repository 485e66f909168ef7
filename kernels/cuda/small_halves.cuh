// Activations of four tokens as bfloat16 halves, for products with tiles of small weights
// (small_tiles.cuh): to make digits of so many takes longer than to make bfloat16 of the weights.
#pragma once

#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda {

template <DType kType>
class HalvesSums;

// In shared memory: [high and low][token][column], whose sum is the value, and for q4 the sums of
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
    __nv_bfloat16* to = x_ + t * pitch_ + tile * SmallTile::kColumns + lane * 4;
    const uint2 front = split_pair(x.x, x.y), back = split_pair(x.z, x.w);
    *reinterpret_cast<uint2*>(to) = make_uint2(front.x, back.x);
    *reinterpret_cast<uint2*>(to + kTokens * pitch_) = make_uint2(front.y, back.y);
    if constexpr (kSums) {
      const float sum = warp_sum<8>(pair_sum(front) + pair_sum(back));
      const float part = tf32_part(sum);
      float* sum_to = sums_ + t * sums_pitch_ + tile * SmallTile::kGroups + lane / 8;
      if (lane % 8 == 0) sum_to[0] = part;
      if (lane % 8 == 1) sum_to[kTokens * sums_pitch_] = tf32_part(sum - part);
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

// Sums of products of 16 rows with the four tokens: see DigitsSums.
template <DType kType>
class HalvesSums {
 public:
  __device__ __forceinline__ void add(const unsigned char* upper, const unsigned char* lower,
                                      const typename HalvesPanel<kType>::Operand& x) {
    add_tile<kType>(upper, lower, x, sums_);
  }

  template <typename Take>
  __device__ __forceinline__ void finish(const Take& take) const {
    const int token = threadIdx.x % 4 * 2;
    float whole[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      whole[i] = sums_[i] + __shfl_xor_sync(kAllLanes, sums_[i], 2);  // the low halves
    }
    if (token >= HalvesPanel<kType>::kTokens) return;
    take(token, whole[0], whole[2]);
    take(token + 1, whole[1], whole[3]);
  }

 private:
  float sums_[4] = {};
};

}  // namespace gsa::cuda
