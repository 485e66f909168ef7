#include "model/state_pool.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/devices.h"
#include "tests/support/equations.h"
#include "tests/support/model_fixture.h"

namespace gsa {
namespace {

GsaConfig config(int64_t conv_size) {
  GsaConfig c;
  c.hidden_size = 16;
  c.num_layers = 3;
  c.vocab_size = 11;
  c.intermediate_size = 8;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.key_dim = 4;
  c.value_dim = 6;
  c.num_slots = 5;
  c.conv_size = conv_size;
  return c;
}

// Devices and types of the memories.
using StatePoolOn = test::DeviceTypeTest;
INSTANTIATE_TEST_SUITE_P(Devices, StatePoolOn, testing::ValuesIn(test::device_types()),
                         test::device_type_name);

int64_t floats_of(const GsaConfig& c) {
  return c.state_bytes() / static_cast<int64_t>(sizeof(float));
}

TEST(StatePool, CountsTheBytesOfAStateExactly) {
  const auto backend = make_cpu_backend(1);
  const int64_t memories = 3 * 2 * 5 * (4 + 6) * 4;
  EXPECT_EQ(StatePool(config(0), *backend, 1).state_bytes(), memories);
  // q, k and v have 16 + 8 + 12 channels, of which the last three inputs are kept.
  EXPECT_EQ(StatePool(config(4), *backend, 1).state_bytes(), memories + 3 * 3 * 36 * 4);
  for (DType type : {DType::kF16, DType::kBF16}) {
    EXPECT_EQ(StatePool(config(0), *backend, 1, type).state_bytes(), memories / 2);
    EXPECT_EQ(StatePool(config(4), *backend, 1, type).state_bytes(), memories / 2 + 3 * 3 * 36 * 4);
  }
  // 3 layers of 1 * 5 * (4 + 7) are an odd number of elements.
  GsaConfig odd = config(4);
  odd.num_heads = odd.num_kv_heads = 1;
  odd.value_dim = 7;
  EXPECT_EQ(StatePool(odd, *backend, 1, DType::kBF16).state_bytes(), 165 * 2 + 3 * 3 * 15 * 4);
}

TEST(StatePool, GivesOutEachStateOnceAndTakesItBack) {
  const auto backend = make_cpu_backend(1);
  StatePool pool(config(0), *backend, 2);
  std::optional<StateHandle> a = pool.acquire(), b = pool.acquire();
  ASSERT_TRUE(a && b);
  EXPECT_NE(a->index(), b->index());
  EXPECT_FALSE(pool.acquire().has_value());
  const int32_t index = a->index();
  a.reset();
  EXPECT_EQ(pool.available(), 1);
  a = pool.acquire();
  EXPECT_EQ(a->index(), index);
  StateHandle moved = std::move(*a);
  EXPECT_FALSE(*a);
  EXPECT_EQ(pool.available(), 0);
  moved.reset();
  EXPECT_EQ(pool.available(), 1);
}

TEST_P(StatePoolOn, HandsOutZerosWhateverTheLastSequenceLeft) {
  const auto backend = this->backend();
  StatePool pool(config(4), *backend, 1, dtype());
  std::vector<float> ones(floats_of(config(4)), 1.0f);
  {
    const StateHandle state = *pool.acquire();
    pool.import_state(ones, state);
    EXPECT_EQ(pool.export_state(state), ones);
  }
  const StateHandle state = *pool.acquire();
  EXPECT_EQ(pool.export_state(state), std::vector<float>(ones.size(), 0.0f));
}

TEST_P(StatePoolOn, ForksAnExactCopyThatThenLivesAlone) {
  const auto backend = this->backend();
  StatePool pool(config(4), *backend, 3, dtype());
  const StateHandle a = *pool.acquire(), b = *pool.acquire(), c = *pool.acquire();
  std::vector<float> values(floats_of(config(4)));
  // Whole numbers that every type has.
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 251);
  pool.import_state(values, b);
  pool.copy(b, c);
  pool.import_state(std::vector<float>(values.size(), -1.0f), b);
  EXPECT_EQ(pool.export_state(c), values);
  EXPECT_EQ(pool.export_state(a), std::vector<float>(values.size(), 0.0f));
}

// States of a megabyte and more, so that copies are still under way when the next call is made.
TEST_P(StatePoolOn, ExportsTheStateOfThatMomentWhateverBecomesOfItAfterwards) {
  GsaConfig c = config(4);
  c.num_layers = 8;
  c.key_dim = c.value_dim = 128;
  c.num_slots = 64;
  const auto backend = this->backend();
  StatePool pool(c, *backend, 4, dtype());
  std::vector<std::vector<float>> values(3, std::vector<float>(floats_of(c)));
  std::vector<StateHandle> sources;
  for (size_t k = 0; k < 3; ++k) {
    for (size_t i = 0; i < values[k].size(); ++i) {
      values[k][i] = static_cast<float>((i + 17 * k) % 251);
    }
    sources.push_back(*pool.acquire());
    pool.import_state(values[k], sources[k]);
  }
  std::vector<HostFloats> taken;
  for (size_t i = 0; i < 14; ++i) {
    const StateHandle state = *pool.acquire();
    pool.copy(sources[i % 3], state);
    taken.push_back(pool.export_state(state));
    if (i % 2 == 1) pool.copy(sources[(i + 1) % 3], state);
  }
  // Given up at once, and its memory taken for the next.
  const StateHandle restored = *pool.acquire();
  pool.import_state(pool.export_state(sources[1]), restored);
  taken.push_back(pool.export_state(sources[2]));
  for (size_t i = 0; i < taken.size(); ++i) EXPECT_EQ(taken[i], values[i % 3]) << i;
  EXPECT_EQ(pool.export_state(restored), values[1]);
}

TEST_P(StatePoolOn, RefusesAStateOfAnotherSize) {
  const auto backend = this->backend();
  StatePool pool(config(0), *backend, 1, dtype());
  const StateHandle state = *pool.acquire();
  EXPECT_THROW(pool.import_state(std::vector<float>{1, 2}, state), Error);
}

TEST_P(StatePoolOn, RoundsMemoriesAtImportAndGivesThemBackAsStored) {
  GsaConfig odd = config(4);
  odd.num_heads = odd.num_kv_heads = 1;
  odd.value_dim = 7;
  for (const GsaConfig& c : {config(0), config(4), odd}) {
    const auto backend = this->backend();
    StatePool pool(c, *backend, 2, dtype());
    const StateHandle a = *pool.acquire(), b = *pool.acquire();
    const std::vector<float> given = test::Random(1).normal(floats_of(c));
    std::vector<float> expected = given;
    for (int64_t i = 0; i < c.memory_elements(); ++i) {
      expected[i] = static_cast<float>(test::stored_as(dtype(), given[i]));
    }
    pool.import_state(given, b);
    EXPECT_EQ(pool.export_state(b), expected);
    pool.import_state(expected, a);
    EXPECT_EQ(pool.export_state(a), expected);
  }
}

}  // namespace
}  // namespace gsa
