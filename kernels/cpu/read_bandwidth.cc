#include "kernels/cpu/read_bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>

#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/read_bandwidth.cc"
#include <hwy/foreach_target.h>  // must come before highway.h
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace gsa::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The exclusive-or of n words, which no compiler can skip.
uint32_t FoldWords(const uint32_t* p, int64_t n) {
  const hn::ScalableTag<uint32_t> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto a = hn::Zero(d), b = a, c = a, e = a;
  for (int64_t i = 0; i + 4 * lanes <= n; i += 4 * lanes) {
    a = hn::Xor(a, hn::LoadU(d, p + i));
    b = hn::Xor(b, hn::LoadU(d, p + i + lanes));
    c = hn::Xor(c, hn::LoadU(d, p + i + 2 * lanes));
    e = hn::Xor(e, hn::LoadU(d, p + i + 3 * lanes));
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Xor(hn::Xor(a, b), hn::Xor(c, e))));
}

}  // namespace gsa::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace gsa::cpu {

HWY_EXPORT(FoldWords);

double measure_read_bandwidth(ThreadPool& pool) {
  constexpr int64_t kWords = int64_t{1} << 28;  // 1 GiB
  constexpr int64_t kUnit = int64_t{1} << 16;
  constexpr int kPasses = 6;
  const auto words = std::make_unique_for_overwrite<uint32_t[]>(kWords);
  pool.parallel_for(kWords / kUnit, [&](int64_t unit) {
    std::fill_n(words.get() + unit * kUnit, kUnit, static_cast<uint32_t>(unit));
  });
  std::atomic<uint32_t> sink = 0;
  double best = 0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.parallel_for(kWords / kUnit, [&](int64_t unit) {
      sink.fetch_xor(HWY_DYNAMIC_DISPATCH(FoldWords)(words.get() + unit * kUnit, kUnit),
                     std::memory_order_relaxed);
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, kWords * sizeof(uint32_t) / elapsed.count());
  }
  return best;
}

}  // namespace gsa::cpu
#endif  // HWY_ONCE
