// The model beside its equations in double precision.

#include <gtest/gtest.h>

#include "tests/support/devices.h"
#include "tests/support/model_fixture.h"
#include "tests/support/model_shapes.h"
#include "tests/support/reference_model.h"

namespace gsa {
namespace {

using test::Doubles;
using test::lively_weights;
using test::Products;
using test::random_tokens;
using test::ReferenceModel;
using test::relative_error;
using test::Runner;
using test::Shape;

using ModelEquations = test::DeviceTypeTest;
INSTANTIATE_TEST_SUITE_P(Devices, ModelEquations, testing::ValuesIn(test::matrix_types()),
                         test::device_type_name);

// Float32 sums of at most 1,024 products err by a few 1e-7 each; two layers of exponentials amplify
// that by about ten. On a GPU, steps of as many tokens as matrix-vector kernels take are float32
// too, in another order.
//
// In steps of more tokens there the operands of products are rounded, in the equations as well. A
// value that is off by d where it is rounded to steps of u ends a whole step away in d / u of all
// cases, so the rounding makes sqrt(d u) of d: of the 2^-12 of a TF32 product of the recurrence
// 2^-10 in bf16, which is no less than the rounding itself errs by, and 2^-11.5 in f16. Equations
// that multiply the recurrence's operands as TF32 were 6.3e-3 (bf16 and small weights) and 1.6e-3
// (f16) away from these at most with the weights below, with others 8.1e-3 and 3.0e-3.
double tolerance(const std::string& device, DType dtype, int64_t rows) {
  if (device == "cpu") return 2e-5;
  if (rows <= 4) return 1e-4;
  if (dtype == DType::kF32) return 2e-3;
  return dtype == DType::kF16 ? 2.5e-3 : 8e-3;
}

TEST_P(ModelEquations, HoldForShapesThatNoFixtureCovers) {
  for (const Shape& shape : test::shapes()) {
    SCOPED_TRACE(shape.name);
    const RandomWeights random = lively_weights(shape.config, 5, dtype());
    const std::vector<int32_t> tokens = random_tokens(70, shape.config.vocab_size, 3);
    for (int64_t rows : {1, 70}) {
      SCOPED_TRACE(rows);
      const double bound = tolerance(device(), dtype(), rows);
      ReferenceModel reference(shape.config, random.weights, DType::kF32, {device(), rows});
      const Doubles expected = reference.logits(tokens);
      Runner run(backend(), shape.config, random.weights, rows);
      const StateHandle state = *run.states.acquire();
      EXPECT_LT(relative_error(run.logits(state, tokens), expected), bound);
      test::expect_memories(run.states.export_state(state), shape.config.num_layers, bound,
                            [&](const std::string& memory, int64_t i) {
                              const ReferenceModel::Memory& of = reference.memory(i);
                              return memory == "hk" ? of.hk : of.hv;
                            });
    }
  }
}

// Products of 5 rows are cuBLASLt's on a GPU where weights have 16 or 32 bits, those of 17 all; the
// step is filled up to 8 and 24.
TEST_P(ModelEquations, HoldForManySequencesDecodedTogether) {
  for (const Shape& shape : test::large_shapes()) {
    SCOPED_TRACE(shape.name);
    const RandomWeights random = lively_weights(shape.config, 21, dtype());
    for (const auto& [sequences, steps] : {std::pair<int64_t, int64_t>(5, 4), {17, 1}}) {
      SCOPED_TRACE(sequences);
      std::vector<ReferenceModel> references(
          sequences,
          ReferenceModel(shape.config, random.weights, DType::kF32, {device(), sequences}));
      Runner run(backend(), shape.config, random.weights, 24, sequences);
      const std::vector<StateHandle> states = test::acquire(run.states, sequences);
      const std::vector<int32_t> tokens =
          random_tokens(steps * sequences, shape.config.vocab_size, 22);
      for (int64_t step = 0; step < steps; ++step) {
        Batch batch;
        Doubles expected;
        for (int64_t i = 0; i < sequences; ++i) {
          const std::span<const int32_t> token(&tokens[step * sequences + i], 1);
          batch.add(states[i], token, Logits::kLast);
          const Doubles row = references[i].step(token[0]);
          expected.insert(expected.end(), row.begin(), row.end());
        }
        EXPECT_LT(relative_error(run.forward(batch), expected),
                  tolerance(device(), dtype(), sequences))
            << "step " << step;
      }
    }
  }
}

}  // namespace
}  // namespace gsa
