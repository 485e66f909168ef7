#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "tests/support/model_fixture.h"

namespace gsa::test {

struct Shape {
  const char* name;
  GsaConfig config;
};

inline GsaConfig with(GsaConfig config, FeatureMap map, int64_t conv, bool affine,
                      bool tied = false) {
  config.feature_map = map;
  config.conv_size = conv;
  config.elementwise_affine = affine;
  config.tie_word_embeddings = tied;
  return config;
}

inline std::vector<Shape> shapes() {
  constexpr auto kSwish = FeatureMap::kSwish, kRelu = FeatureMap::kRelu, kT2R = FeatureMap::kT2R;
  return {
      {"one head of 512 with 128 slots", shape(1, 1, 512, 512, 128)},
      {"one memory for all query heads", shape(6, 1, 16, 16, 24)},
      {"learned map with grouped heads", with(shape(6, 3, 12, 12, 20), kT2R, 0, true)},
      {"convolution with grouped heads", with(shape(4, 2, 16, 16, 16), kSwish, 4, true)},
      {"convolution of width one", with(shape(2, 2, 16, 16, 16), kSwish, 1, true)},
      {"convolution of width two", with(shape(2, 1, 16, 16, 16), kRelu, 2, true)},
      {"no output norm weight", with(shape(2, 2, 16, 16, 16), kSwish, 0, false)},
      {"everything at once", with(shape(10, 2, 8, 8, 40), kT2R, 3, false, true)},
      {"odd sizes", shape(3, 3, 7, 5, 9)},
      {"more slots than a block", shape(2, 1, 8, 24, 200)},
      {"one slot", shape(2, 2, 8, 8, 1)},
  };
}

// A configuration with these sizes besides and three layers.
inline GsaConfig sized(GsaConfig config, int64_t F, int64_t vocabulary) {
  config.num_layers = 3;
  config.intermediate_size = F;
  config.vocab_size = vocabulary;
  return config;
}

// Shapes of which a GPU decodes a few sequences in one kernel where weights are of bfloat16.
inline std::vector<Shape> large_shapes() {
  constexpr auto kSwish = FeatureMap::kSwish, kRelu = FeatureMap::kRelu;
  return {
      {"two query heads a memory", sized(shape(2, 1, 128, 128, 32), 2304, 97)},
      {"a memory for each head", sized(shape(4, 4, 128, 128, 64), 768, 2500)},
      {"four query heads a memory", sized(with(shape(8, 2, 32, 32, 16), kRelu, 0, true), 256, 97)},
      {"many slots", sized(with(shape(1, 1, 256, 256, 256), kSwish, 0, false, true), 512, 97)},
  };
}

// Where it does so with small weights too. Tiles of these do not fill the last piece of columns,
// and blocks have different numbers of them.
inline std::vector<Shape> wide_shapes() {
  return {
      {"nine heads", sized(shape(9, 9, 128, 128, 32), 1344, 97)},
      {"grouped heads", sized(shape(8, 4, 256, 256, 64), 1088, 2500)},
  };
}

}  // namespace gsa::test
