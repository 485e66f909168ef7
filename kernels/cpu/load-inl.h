// Loads of a vector of floats from stored weights. Included once per SIMD target.

#if defined(GSA_KERNELS_CPU_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GSA_KERNELS_CPU_LOAD_INL_H_
#undef GSA_KERNELS_CPU_LOAD_INL_H_
#else
#define GSA_KERNELS_CPU_LOAD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Stored element types; 16-bit formats need distinct types although both are two bytes.
struct F16 {
  uint16_t bits;
};
struct BF16 {
  uint16_t bits;
};

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const float* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const BF16* p) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::PromoteTo(du, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}

template <class D>
HWY_INLINE hn::Vec<D> load_f32(D d, const F16* p) {
  const hn::Rebind<hwy::float16_t, D> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
}

// The last `n` < lanes elements of a row, zeros behind them; reads nothing past p + n.
template <class D, typename T>
HWY_INLINE hn::Vec<D> load_f32_tail(D d, const T* p, size_t n) {
  T buffer[HWY_MAX_BYTES / sizeof(float)] = {};
  std::memcpy(buffer, p, n * sizeof(T));
  return load_f32(d, buffer);
}

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // toggle
