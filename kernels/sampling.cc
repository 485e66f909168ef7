#include "kernels/sampling.h"

#include "kernels/error.h"
#include "kernels/philox.h"

namespace gsa {

double uniform(uint64_t seed, uint64_t index) {
  const std::array<uint32_t, 4> words =
      philox4x32({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0},
                 {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (uint64_t{words[0]} << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

void throw_nan_logits() {
  throw Error("the model's logits are not numbers (NaN): its weights may be damaged");
}

}  // namespace gsa
