// Activations of the products inside of a persistent kernel, in shared memory.
#pragma once

#include <type_traits>

#include "kernels/cuda/small_digits.cuh"
#include "kernels/cuda/small_halves.cuh"
#include "kernels/cuda/stream_math.cuh"

namespace gsa::cuda {

// A panel of columns of at most kTokens tokens: bfloat16 halves whose sum is the value, or digits,
// or, of what the rows apart take too, both.
template <DType kType, int kTokens>
class StreamPanel {
 public:
  static constexpr bool kAsDigits = as_digits(kType, kTokens);
  using Digits = DigitsPanel<kTileType<kType>, kAsDigits ? kTokens : 1>;
  // Of products with tiles of small weights.
  using Sums = std::conditional_t<kAsDigits, typename Digits::Sums, HalvesSums<kTileType<kType>>>;

  // A lane's part of the halves at the first column of a tile of small weights, see add_tile().
  struct HalvesOperand {
    const __nv_bfloat16* x;
    const float* sums;

    __device__ __forceinline__ uint4 columns(int group) const {
      const auto* at = reinterpret_cast<const uint4*>(x + group / 2 * kBoxColumns);
      const uint4 front = at[0], back = at[kBoxColumns / 16];
      return group % 2 == 0 ? make_uint4(front.x, back.x, front.y, back.y)
                            : make_uint4(front.z, back.z, front.w, back.w);
    }
    __device__ __forceinline__ float sum() const { return *sums; }
    __device__ __forceinline__ void next() {
      x += SmallTile::kColumns;
      sums += SmallTile::kGroups;
    }
  };

  __device__ StreamPanel(const StreamPlan& at, unsigned char* shared)
      : digits_(shared + at.digits),
        halves_(reinterpret_cast<__nv_bfloat16*>(shared + at.panel)),
        sums_(reinterpret_cast<float*>(shared + at.panel_sums)) {}

  __device__ __forceinline__ void set_pieces(int pieces) { pieces_ = pieces; }

  // Takes four activations of a token for each lane, those of a whole tile for the warp.
  __device__ __forceinline__ void keep(int t, int column, const float4& x, bool for_apart) const {
    if constexpr (kAsDigits) digits().keep(t, column / SmallTile::kColumns, x);
    if (!kAsDigits || for_apart) keep_halves(t, column, x);
  }

  // Rows 2 t and 2 t + 1 are the high and low halves of token t.
  __device__ __forceinline__ const __nv_bfloat16* row(int n) const { return halves_ + n * pitch(); }
  __device__ __forceinline__ int pitch() const { return pieces_ * kPiece + kPanelPad; }

  // What Sums adds up from there on; of halves a lane 4 n + j has row n.
  __device__ __forceinline__ auto operand(int column) const {
    if constexpr (kAsDigits) {
      return digits().operand(column / SmallTile::kColumns);
    } else {
      const int n = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
      return HalvesOperand{row(n) + column + j * 8, sums_ + n * sums_pitch() + column / 32 + j};
    }
  }

 private:
  __device__ __forceinline__ Digits digits() const {
    return Digits(digits_, pieces_ * kPieceTiles);
  }
  // The first two go to the one half of a block of columns and the last two to the other, see
  // StreamProducts::add().
  __device__ __forceinline__ void keep_halves(int t, int column, const float4& x) const {
    const uint2 front = split_pair(x.x, x.y), back = split_pair(x.z, x.w);
    const int at = column % kBoxColumns;
    uint32_t* high = reinterpret_cast<uint32_t*>(halves_ + 2 * t * pitch() + column - at) +
                     at % 32 / 8 * 4 + at / 32 * 2 + at % 8 / 4;
    uint32_t* low = high + pitch() / 2;
    constexpr int kHalf = kBoxColumns / 4;
    high[0] = front.x, high[kHalf] = back.x;
    low[0] = front.y, low[kHalf] = back.y;
    if constexpr (kType == DType::kQ4 && !kAsDigits) {
      store_group_sum(front, back, sums_ + 2 * t * sums_pitch() + column / 32, sums_pitch());
    }
  }
  __device__ __forceinline__ int sums_pitch() const { return pieces_ * (kPiece / 32) + kSumsPad; }

  int pieces_ = 0;  // of columns
  unsigned char* digits_;
  // [T][high and low halves][blocks of kBoxColumns][2][4 lanes][2][2] and kPanelPad
  __nv_bfloat16* halves_;
  float* sums_;  // of q4 as halves: [T][two halves][groups of 32 columns] and kSumsPad
};

}  // namespace gsa::cuda
