#pragma once

#include <cstdint>

namespace gsa {

// phi, applied to every head of q and k: silu, relu, or relu of a learned K x K map (T2R).
enum class FeatureMap : uint8_t { kSwish, kRelu, kT2R };

// The shape of a layer's memories: H query heads over G key/value heads, key dim K and value dim V
// per head, M slots.
struct MixShape {
  int64_t H = 0, G = 0, K = 0, V = 0, M = 0;
};

}  // namespace gsa
