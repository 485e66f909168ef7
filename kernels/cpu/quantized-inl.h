// Vectors of weights from quantized rows (kernels/quantized.h). Included once per SIMD target.

#if defined(GSA_KERNELS_CPU_QUANTIZED_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GSA_KERNELS_CPU_QUANTIZED_INL_H_
#undef GSA_KERNELS_CPU_QUANTIZED_INL_H_
#else
#define GSA_KERNELS_CPU_QUANTIZED_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/load-inl.h"
#include "kernels/quantized.h"

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {

// A group is kGroupVectors<D> vectors of floats; all vectors divide 32 lanes evenly.
template <class D>
constexpr int kGroupVectors = static_cast<int>(QuantizedRow::kGroup / hn::MaxLanes(D()));

// The weights of a group: `Group(d, integers, scale, minimum)`, then vector(v) for v in [0,
// kGroupVectors).
template <class D>
class Q8Group {
 public:
  static constexpr DType kType = DType::kQ8;

  HWY_INLINE Q8Group(D d, const uint8_t* integers, float scale, float)
      : d_(d), integers_(integers), scale_(hn::Set(d, scale)) {}

  HWY_INLINE hn::Vec<D> vector(int v) const {
    const hn::Rebind<int8_t, D> d8;
    const hn::RebindToSigned<D> d32;
    const auto* at = reinterpret_cast<const int8_t*>(integers_) + v * hn::MaxLanes(d_);
    return hn::Mul(hn::ConvertTo(d_, hn::PromoteTo(d32, hn::LoadU(d8, at))), scale_);
  }

 private:
  D d_;
  const uint8_t* integers_;
  hn::Vec<D> scale_;
};

template <class D>
class Q4Group {
 public:
  static constexpr DType kType = DType::kQ4;

#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  // All sixteen weights that a group may hold make one vector, and a permutation looks them up: it
  // reads the low four bits of a lane and nothing else.
  HWY_INLINE Q4Group(D d, const uint8_t* integers, float scale, float minimum)
      : weights_(hn::MulAdd(hn::Iota(d, 0), hn::Set(d, scale), hn::Set(d, minimum))),
        halves_(hn::PromoteTo(hn::RebindToUnsigned<D>(),
                              hn::LoadU(hn::Rebind<uint8_t, D>(), integers))) {}

  HWY_INLINE hn::Vec<D> vector(int v) const {
    const auto index = v == 0 ? halves_ : hn::ShiftRight<4>(halves_);
    return hn::TableLookupLanes(weights_, hn::Indices512<float>{index.raw});
  }

 private:
  hn::Vec<D> weights_;
  hn::Vec<hn::RebindToUnsigned<D>> halves_;
#else
  HWY_INLINE Q4Group(D d, const uint8_t* integers, float scale, float minimum)
      : d_(d), integers_(integers), scale_(hn::Set(d, scale)), minimum_(hn::Set(d, minimum)) {}

  HWY_INLINE hn::Vec<D> vector(int v) const {
    const hn::Rebind<uint8_t, D> d8;
    const hn::RebindToSigned<D> d32;
    const int first = v * static_cast<int>(hn::MaxLanes(d_));
    const auto bytes = hn::PromoteTo(d32, hn::LoadU(d8, integers_ + first % 16));
    const auto half = first < 16 ? hn::And(bytes, hn::Set(d32, 15)) : hn::ShiftRight<4>(bytes);
    return hn::MulAdd(hn::ConvertTo(d_, half), scale_, minimum_);
  }

 private:
  D d_;
  const uint8_t* integers_;
  hn::Vec<D> scale_, minimum_;
#endif
};

// The scales and minima of some consecutive groups of a row, as floats.
struct GroupScales {
  static constexpr int64_t kMost = 64;  // at a time

  // Reads nothing past the last of `count` groups.
  template <class D>
  HWY_INLINE void load(D d, DType type, const uint8_t* row, int64_t cols, int64_t first,
                       int64_t count) {
    const auto* halves =
        reinterpret_cast<const F16*>(row + QuantizedRow::scales_offset(type, cols));
    widen(d, halves + first, count, scale);
    if (type == DType::kQ4) {
      widen(d, halves + QuantizedRow::groups(cols) + first, count, minimum);
    }
  }

  HWY_ALIGN float scale[kMost];
  HWY_ALIGN float minimum[kMost];  // of q4

 private:
  template <class D>
  static HWY_INLINE void widen(D d, const F16* from, int64_t count, float* to) {
    const int64_t lanes = static_cast<int64_t>(hn::MaxLanes(d));
    int64_t i = 0;
    for (; i + lanes <= count; i += lanes) hn::Store(load_f32(d, from + i), d, to + i);
    if (i < count) hn::Store(load_f32_tail(d, from + i, count - i), d, to + i);
  }
};

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
