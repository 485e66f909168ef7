#include "model/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/support/devices.h"
#include "tests/support/equations.h"
#include "tests/support/error_of.h"
#include "tests/support/model_fixture.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/tree.h"

namespace gsa {
namespace {

using testing::AllOf;
using testing::HasSubstr;

GsaConfig small_config(int64_t conv_size) {
  GsaConfig c;
  c.hidden_size = 24;
  c.num_layers = 2;
  c.vocab_size = 31;
  c.intermediate_size = 40;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.key_dim = 6;
  c.value_dim = 6;
  c.num_slots = 10;
  c.conv_size = conv_size;
  return c;
}

const ModelIdentity kModel{"ours.safetensors", "0123456789abcdef"};

Snapshot run_and_take(test::Runner& run, const StateHandle& state,
                      const std::vector<int32_t>& tokens) {
  const std::vector<float> logits = run.logits(state, tokens);
  const int64_t N = run.model.config().vocab_size;
  return {tokens, run.states.export_state(state),
          std::vector<float>(logits.end() - N, logits.end())};
}

TEST(Snapshot, SurvivesAFileBitForBitAndGoesOnAsIfNeverStopped) {
  for (int64_t conv_size : {0, 1, 4}) {
    SCOPED_TRACE(conv_size);
    const GsaConfig config = small_config(conv_size);
    const RandomWeights random = test::lively_weights(config, 1);
    const std::vector<int32_t> tokens = test::random_tokens(30, config.vocab_size, 2);
    const std::vector<int32_t> first(tokens.begin(), tokens.begin() + 17);
    const std::vector<int32_t> rest(tokens.begin() + 17, tokens.end());
    test::Runner run(config, random.weights);
    const StateHandle state = *run.states.acquire();
    const Snapshot taken = run_and_take(run, state, first);
    const std::vector<float> expected = run.logits(state, rest);

    const test::TemporaryFolder folder;
    save_snapshot(taken, config, kModel, folder.path() / "s.safetensors");
    const Snapshot loaded = load_snapshot(folder.path() / "s.safetensors", config, kModel);
    EXPECT_EQ(loaded.tokens, taken.tokens);
    EXPECT_EQ(loaded.state, taken.state);
    EXPECT_EQ(loaded.logits, taken.logits);

    test::Runner other(config, random.weights, 1, 5);
    const StateHandle restored = *other.states.acquire();
    other.states.import_state(loaded.state, restored);
    EXPECT_EQ(other.logits(restored, rest), expected);
  }
}

using SnapshotOn = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, SnapshotOn, testing::ValuesIn(test::kDevices), test::device_name);

// A text begun on one device and ended on another, through a file; each may store memories in a
// type of its own.
std::vector<float> begin_and_end(std::unique_ptr<Backend> begin, std::unique_ptr<Backend> end,
                                 const GsaConfig& config, const ModelWeights& weights,
                                 std::span<const int32_t> tokens, DType begin_type = DType::kF32,
                                 DType end_type = DType::kF32) {
  const test::TemporaryFolder folder;
  const size_t cut = tokens.size() / 2;
  test::Runner first(std::move(begin), config, weights, 16, 8, begin_type);
  const StateHandle state = *first.states.acquire();
  save_snapshot(run_and_take(first, state, {tokens.begin(), tokens.begin() + cut}), config, kModel,
                folder / "s.safetensors");
  const Snapshot loaded = load_snapshot(folder / "s.safetensors", config, kModel);
  test::Runner second(std::move(end), config, weights, 16, 8, end_type);
  // Not the first state of its pool.
  const StateHandle other = *second.states.acquire(), restored = *second.states.acquire();
  second.states.import_state(loaded.state, restored);
  std::vector<float> expected(loaded.state.begin(), loaded.state.end());
  for (int64_t i = 0; i < config.memory_elements(); ++i) {
    expected[i] = static_cast<float>(test::stored_as(end_type, expected[i]));
  }
  EXPECT_EQ(second.states.export_state(restored), expected);
  return second.logits(restored, tokens.subspan(cut));
}

TEST_P(SnapshotOn, GoesOnOnAnotherDeviceAsOnItsOwn) {
  for (int64_t conv_size : {0, 4}) {
    SCOPED_TRACE(conv_size);
    const GsaConfig config = small_config(conv_size);
    const RandomWeights random = test::lively_weights(config, 3);
    const std::vector<int32_t> tokens = test::random_tokens(66, config.vocab_size, 4);
    const auto cpu = [] { return make_cpu_backend(2); };
    const std::vector<float> expected = begin_and_end(cpu(), cpu(), config, random.weights, tokens);
    // Steps of 16 tokens are TF32 products on a GPU.
    const double tolerance = device() == "cpu" ? 0 : 2e-3;
    EXPECT_LE(test::relative_error(begin_and_end(cpu(), backend(), config, random.weights, tokens),
                                   expected),
              tolerance);
    EXPECT_LE(test::relative_error(begin_and_end(backend(), cpu(), config, random.weights, tokens),
                                   expected),
              tolerance);
  }
}

TEST_P(SnapshotOn, GoesOnInAnotherTypeOfState) {
  const GsaConfig config = small_config(4);
  const RandomWeights random = test::lively_weights(config, 3);
  const std::vector<int32_t> tokens = test::random_tokens(66, config.vocab_size, 4);
  const auto run = [&](DType begin, DType end) {
    return begin_and_end(backend(), make_cpu_backend(2), config, random.weights, tokens, begin,
                         end);
  };
  const std::vector<float> expected = run(DType::kF32, DType::kF32);
  for (DType type : {DType::kF16, DType::kBF16}) {
    SCOPED_TRACE(dtype_name(type));
    // What 16 bits may cost (tests/model/state_type_test.cc), and TF32 products on a GPU.
    const double tolerance =
        3 * (type == DType::kF16 ? 0x1p-11 : 0x1p-9) + (device() == "cpu" ? 0 : 2e-3);
    EXPECT_LT(test::relative_error(run(type, DType::kF32), expected), tolerance);
    EXPECT_LT(test::relative_error(run(DType::kF32, type), expected), tolerance);
    EXPECT_LT(test::relative_error(run(type, type), expected), tolerance);
    EXPECT_GT(test::relative_error(run(type, type), expected), 0);
  }
}

TEST(Snapshot, OfAnotherModelIsRefusedByName) {
  const GsaConfig config = small_config(0);
  const RandomWeights random = test::lively_weights(config, 1);
  test::Runner run(config, random.weights);
  const StateHandle state = *run.states.acquire();
  const test::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "s.safetensors";
  save_snapshot(run_and_take(run, state, {1, 2, 3}), config, kModel, path);
  const ModelIdentity other{"theirs.safetensors", "fedcba9876543210"};
  EXPECT_THAT(test::error_of([&] { load_snapshot(path, config, other); }),
              AllOf(HasSubstr("s.safetensors"), HasSubstr("ours.safetensors"),
                    HasSubstr("theirs.safetensors")));
}

TEST(Snapshot, CutAnywhereIsRefused) {
  const GsaConfig config = small_config(0);
  const RandomWeights random = test::lively_weights(config, 1);
  test::Runner run(config, random.weights);
  const StateHandle state = *run.states.acquire();
  const test::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "s.safetensors";
  save_snapshot(run_and_take(run, state, {1, 2, 3}), config, kModel, path);
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  for (int64_t left : {size - 1, size - 12, size / 2, int64_t{100}, int64_t{8}, int64_t{0}}) {
    std::filesystem::resize_file(path, left);
    EXPECT_THAT(test::error_of([&] { load_snapshot(path, config, kModel); }),
                HasSubstr("s.safetensors"))
        << left << " bytes left";
  }
}

TEST(Snapshot, OfAConvertedModelInsteadIsRefused) {
  const std::filesystem::path path = test::tree() / "models/tale-10m.safetensors";
  EXPECT_THAT(test::error_of([&] { load_snapshot(path, small_config(0), kModel); }),
              HasSubstr("not a snapshot"));
}

}  // namespace
}  // namespace gsa
