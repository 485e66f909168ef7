// Steps whose tokens the device has drawn and the host does not know.

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "tests/support/devices.h"
#include "tests/support/model_fixture.h"

namespace gsa {
namespace {

using test::Runner;

using DrawnTokens = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, DrawnTokens, testing::ValuesIn(test::kDevices),
                         test::device_name);

constexpr int64_t kSequences = 6;
constexpr uint64_t kSteps = 14;

GsaConfig config() {
  GsaConfig c = test::shape(4, 2, 16, 16, 16);
  c.conv_size = 4;
  return c;
}

// Which of the sequences of the step before go on, as its rows: all of them turned round, and one
// less every fourth step.
std::vector<int32_t> rows_after(uint64_t step, size_t rows) {
  std::vector<int32_t> chosen;
  for (size_t i = 0; i < rows; ++i) chosen.push_back(static_cast<int32_t>((i + 1) % rows));
  if (step % 4 == 3) chosen.erase(chosen.begin());
  return chosen;
}

// Decodes all sequences and returns the logits of all steps. In turn, every token goes through the
// host; ahead, a step is queued before the draw of the one before is collected.
std::vector<float> decode(const RandomWeights& weights, std::unique_ptr<Backend> backend,
                          bool ahead) {
  Runner run(std::move(backend), config(), weights.weights, 16, kSequences);
  Backend& device = *run.backend;
  std::vector<StateHandle> states = test::acquire(run.states, kSequences);
  const SamplingParams params{.temperature = 0.8, .seed = 5};
  std::vector<size_t> sequences(kSequences);  // by row of the step
  std::iota(sequences.begin(), sequences.end(), size_t{0});
  std::vector<int32_t> rows;        // their rows in the step before
  std::vector<SampleResult> drawn;  // by the latest step that is collected
  std::vector<float> found;
  for (uint64_t step = 0; step < kSteps; ++step) {
    Batch batch;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const StateHandle& state = states[sequences[i]];
      const int32_t first = static_cast<int32_t>(10 + i);
      if (step == 0) {
        batch.add(state, {&first, 1}, Logits::kLast);
      } else if (ahead) {
        batch.add_drawn(state, rows[i], Logits::kLast);
      } else {
        batch.add(state, {&drawn[rows[i]].token, 1}, Logits::kLast);
      }
    }
    const TensorView logits = run.model.forward(batch, run.states);
    if (ahead && step > 0) device.collect_sample(drawn);
    drawn.resize(sequences.size());
    device.queue_sample(logits, std::vector(drawn.size(), SampleRow{&params, step}));
    if (!ahead) device.collect_sample(drawn);
    const std::vector<float> host = test::download(device, logits);
    found.insert(found.end(), host.begin(), host.end());
    rows = rows_after(step, sequences.size());
    std::vector<size_t> next;
    for (int32_t row : rows) next.push_back(sequences[row]);
    sequences = std::move(next);
  }
  return found;
}

TEST_P(DrawnTokens, GiveTheLogitsOfTheSameTokensThatTheHostHandsIn) {
  const RandomWeights weights = test::lively_weights(config(), 21);
  const std::vector<float> expected = decode(weights, backend(), false);
  ASSERT_GT(expected.size(), 40u * config().vocab_size);
  EXPECT_EQ(decode(weights, backend(), true), expected);
}

}  // namespace
}  // namespace gsa
