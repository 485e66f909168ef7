#include "model/state_pool.h"

#include <gtest/gtest.h>

#include "kernels/error.h"
#include "tests/support/devices.h"
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

using StatePoolOn = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, StatePoolOn, testing::ValuesIn(test::kDevices),
                         test::device_name);

TEST(StatePool, CountsTheBytesOfAStateExactly) {
  const auto backend = make_cpu_backend(1);
  const int64_t memories = 3 * 2 * 5 * (4 + 6) * 4;
  EXPECT_EQ(StatePool(config(0), *backend, 1).state_bytes(), memories);
  // q, k and v have 16 + 8 + 12 channels, of which the last three inputs are kept.
  EXPECT_EQ(StatePool(config(4), *backend, 1).state_bytes(), memories + 3 * 3 * 36 * 4);
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
  StatePool pool(config(4), *backend, 1);
  std::vector<float> ones(pool.state_bytes() / sizeof(float), 1.0f);
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
  StatePool pool(config(4), *backend, 3);
  const StateHandle a = *pool.acquire(), b = *pool.acquire(), c = *pool.acquire();
  std::vector<float> values(pool.state_bytes() / sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  pool.import_state(values, b);
  pool.copy(b, c);
  pool.import_state(std::vector<float>(values.size(), -1.0f), b);
  EXPECT_EQ(pool.export_state(c), values);
  EXPECT_EQ(pool.export_state(a), std::vector<float>(values.size(), 0.0f));
}

TEST_P(StatePoolOn, RefusesAStateOfAnotherSize) {
  const auto backend = this->backend();
  StatePool pool(config(0), *backend, 1);
  const StateHandle state = *pool.acquire();
  EXPECT_THROW(pool.import_state({1.0f, 2.0f}, state), Error);
}

}  // namespace
}  // namespace gsa
