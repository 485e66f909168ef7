#include "kernels/philox.h"

#include <gtest/gtest.h>

#include <set>

#include "kernels/sampling.h"

namespace gsa {
namespace {

using Words = std::array<uint32_t, 4>;

// The known-answer vectors that its authors publish (Random123, kat_vectors).
TEST(Philox, GivesThePublishedWords) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Uniform, IsTheFirst53BitsOfPhilox) {
  EXPECT_EQ(uniform(0, 0), static_cast<double>(0x6627e8d5e169c58d >> 11) / 0x1p53);
}

TEST(Uniform, DependsOnEveryWordOfSeedAndIndex) {
  const std::set<double> numbers = {uniform(0, 0), uniform(1, 0), uniform(uint64_t{1} << 32, 0),
                                    uniform(0, 1), uniform(0, uint64_t{1} << 32)};
  EXPECT_EQ(numbers.size(), 5u);
}

TEST(Uniform, FillsTheUnitIntervalEvenlyAlongIndicesAndSeeds) {
  constexpr int kBins = 64, kDraws = 64000;
  int by_index[kBins] = {}, by_seed[kBins] = {};
  for (int i = 0; i < kDraws; ++i) {
    ++by_index[static_cast<int>(uniform(7, i) * kBins)];
    ++by_seed[static_cast<int>(uniform(i, 7) * kBins)];
  }
  double index_chi = 0, seed_chi = 0;
  for (int b = 0; b < kBins; ++b) {
    const double expected = kDraws / kBins;
    index_chi += (by_index[b] - expected) * (by_index[b] - expected) / expected;
    seed_chi += (by_seed[b] - expected) * (by_seed[b] - expected) / expected;
  }
  // 63 degrees of freedom: one run in a million exceeds 131.
  EXPECT_LT(index_chi, 131);
  EXPECT_LT(seed_chi, 131);
}

}  // namespace
}  // namespace gsa
