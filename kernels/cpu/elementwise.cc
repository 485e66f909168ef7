#include "kernels/cpu/elementwise.h"

#include <cmath>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include "kernels/cpu/load-inl.h"

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {

const hn::ScalableTag<float> kF;
using Vec = hn::Vec<decltype(kF)>;

// Calls body(i, load, store) for every vector of [0, n); the last one may be partial: its missing
// lanes read as zero and are not written.
template <typename Body>
HWY_INLINE void for_each_vector(int64_t n, const Body& body) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(kF));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    body(
        i, [](const auto* p) HWY_ATTR { return load_f32(kF, p); },
        [](Vec v, float* p) HWY_ATTR { hn::StoreU(v, kF, p); });
  }
  if (const int64_t rest = n - i; rest > 0) {
    body(
        i, [rest](const auto* p) HWY_ATTR { return load_f32_tail(kF, p, rest); },
        [rest](Vec v, float* p) HWY_ATTR {
          float buffer[HWY_MAX_BYTES / sizeof(float)];
          hn::StoreU(v, kF, buffer);
          std::memcpy(p, buffer, rest * sizeof(float));
        });
  }
}

HWY_INLINE Vec silu_of(Vec x) {
  const Vec one = hn::Set(kF, 1.0f);
  return hn::Div(x, hn::Add(one, hn::Exp(kF, hn::Neg(x))));
}

void RmsNorm(const float* x, const float* weight, double eps, int64_t n, float* y) {
  Vec squares = hn::Zero(kF);
  for_each_vector(n, [&](int64_t i, auto load, auto) HWY_ATTR {
    const Vec v = load(x + i);
    squares = hn::MulAdd(v, v, squares);
  });
  const double mean = hn::GetLane(hn::SumOfLanes(kF, squares)) / static_cast<double>(n);
  const Vec scale = hn::Set(kF, static_cast<float>(1.0 / std::sqrt(mean + eps)));
  for_each_vector(n, [&](int64_t i, auto load, auto store) HWY_ATTR {
    const Vec v = hn::Mul(load(x + i), scale);
    store(weight == nullptr ? v : hn::Mul(v, load(weight + i)), y + i);
  });
}

void Silu(float* x, int64_t n) {
  for_each_vector(
      n, [&](int64_t i, auto load, auto store) HWY_ATTR { store(silu_of(load(x + i)), x + i); });
}

void Relu(float* x, int64_t n) {
  for_each_vector(n, [&](int64_t i, auto load, auto store)
                         HWY_ATTR { store(hn::Max(load(x + i), hn::Zero(kF)), x + i); });
}

void SiluMultiply(const float* up, int64_t n, float* x) {
  for_each_vector(n, [&](int64_t i, auto load, auto store)
                         HWY_ATTR { store(hn::Mul(silu_of(load(x + i)), load(up + i)), x + i); });
}

void Gates(const float* f, double normalizer, int64_t n, float* keep, float* write) {
  const Vec inverse = hn::Set(kF, static_cast<float>(1.0 / normalizer));
  for_each_vector(n, [&](int64_t i, auto load, auto store) HWY_ATTR {
    const Vec v = load(f + i);
    // log sigmoid(v) = min(v, 0) - log1p(exp(-|v|))
    const Vec log_sigmoid =
        hn::Sub(hn::Min(v, hn::Zero(kF)), hn::Log1p(kF, hn::Exp(kF, hn::Neg(hn::Abs(v)))));
    const Vec log_keep = hn::Mul(log_sigmoid, inverse);
    store(hn::Exp(kF, log_keep), keep + i);
    store(hn::Neg(hn::Expm1(kF, log_keep)), write + i);
  });
}

void Softmax(float* x, int64_t n) {
  float max = x[0];
  for (int64_t i = 1; i < n; ++i) max = x[i] > max ? x[i] : max;
  const Vec shift = hn::Set(kF, max);
  for_each_vector(n, [&](int64_t i, auto load, auto store)
                         HWY_ATTR { store(hn::Exp(kF, hn::Sub(load(x + i), shift)), x + i); });
  Vec sums = hn::Zero(kF);
  for_each_vector(n,
                  [&](int64_t i, auto load, auto) HWY_ATTR { sums = hn::Add(sums, load(x + i)); });
  const Vec scale = hn::Set(kF, 1.0f / hn::GetLane(hn::SumOfLanes(kF, sums)));
  for_each_vector(n, [&](int64_t i, auto load, auto store)
                         HWY_ATTR { store(hn::Mul(load(x + i), scale), x + i); });
}

template <typename T>
void widen_from(const T* p, int64_t n, float* out) {
  for_each_vector(n,
                  [&](int64_t i, auto load, auto store) HWY_ATTR { store(load(p + i), out + i); });
}

void Widen(const TensorView& stored, int64_t begin, int64_t n, float* out) {
  switch (stored.dtype) {
    case DType::kF32:
      return widen_from(static_cast<const float*>(stored.data) + begin, n, out);
    case DType::kF16:
      return widen_from(static_cast<const F16*>(stored.data) + begin, n, out);
    case DType::kBF16:
      return widen_from(static_cast<const BF16*>(stored.data) + begin, n, out);
    default:
      HWY_ABORT("widen: unsupported type");
  }
}

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gsa::cpu {

HWY_EXPORT(RmsNorm);
HWY_EXPORT(Silu);
HWY_EXPORT(Relu);
HWY_EXPORT(SiluMultiply);
HWY_EXPORT(Gates);
HWY_EXPORT(Softmax);
HWY_EXPORT(Widen);

void rms_norm(const float* x, const float* weight, double eps, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(RmsNorm)(x, weight, eps, n, y);
}
void silu(float* x, int64_t n) { HWY_DYNAMIC_DISPATCH(Silu)(x, n); }
void relu(float* x, int64_t n) { HWY_DYNAMIC_DISPATCH(Relu)(x, n); }
void silu_multiply(const float* up, int64_t n, float* x) {
  HWY_DYNAMIC_DISPATCH(SiluMultiply)(up, n, x);
}
void gates(const float* f, double normalizer, int64_t n, float* keep, float* write) {
  HWY_DYNAMIC_DISPATCH(Gates)(f, normalizer, n, keep, write);
}
void softmax(float* x, int64_t n) { HWY_DYNAMIC_DISPATCH(Softmax)(x, n); }
void widen(const TensorView& stored, int64_t begin, int64_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(Widen)(stored, begin, n, out);
}

}  // namespace gsa::cpu
#endif  // HWY_ONCE
