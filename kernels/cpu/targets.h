// Which SIMD targets are compiled, chosen at run time by what the processor has. Included before
// any header of Highway by every file that uses it.
#pragma once

// AVX3_DL and SSSE3 would double the build for no instruction that is used here; the scalable
// targets cannot hold vectors in arrays, which the register tiles do.
#define HWY_DISABLED_TARGETS (HWY_AVX3_DL | HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_RVV)
