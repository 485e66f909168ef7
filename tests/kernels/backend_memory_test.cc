// The memory of a backend, and the operations that only move it.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/device_data.h"
#include "tests/support/devices.h"
#include "tests/support/equations.h"
#include "tests/support/error_of.h"

namespace gsa {
namespace {

using test::DeviceArray;
using test::Random;
using test::StepData;
using test::Weights;

using BackendMemory = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendMemory, testing::ValuesIn(test::kDevices),
                         test::device_name);

using BackendGather = test::DeviceTypeTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendGather, testing::ValuesIn(test::device_types()),
                         test::device_type_name);

TEST_P(BackendMemory, SaysWhichDeviceItIs) {
  const auto backend = this->backend();
  EXPECT_EQ(backend->name(), device());
  EXPECT_FALSE(backend->description().empty());
  EXPECT_GT(backend->free_memory(), int64_t{1} << 20);
}

TEST_P(BackendMemory, IsZeroedAndAlignedWhenAllocated) {
  const auto backend = this->backend();
  for (size_t bytes : {1u, 4u, 63u, 4096u, 1000003u}) {
    // Memory that was used before is zeroed again.
    for (int round = 0; round < 2; ++round) {
      const Buffer buffer = backend->allocate(bytes);
      ASSERT_NE(buffer.data(), nullptr);
      EXPECT_EQ(buffer.bytes(), bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
      std::vector<char> host(bytes, 'x');
      backend->download(buffer.data(), bytes, host.data());
      EXPECT_EQ(host, std::vector<char>(bytes, '\0')) << bytes << " bytes";
      const std::vector<char> used(bytes, 'u');
      backend->upload(used.data(), bytes, buffer.data());
      backend->synchronize();
    }
  }
}

TEST_P(BackendMemory, ReturnsTheBytesThatWereSent) {
  const auto backend = this->backend();
  for (int64_t count : {1, 7, 1000, 300001}) {
    const std::vector<float> values = Random(1).normal(count);
    const DeviceArray array(*backend, 1, count, values);
    EXPECT_EQ(array.get(), values) << count;
  }
}

TEST_P(BackendMemory, GathersAndScattersSlicesAndNothingElse) {
  const auto backend = this->backend();
  const std::vector<float> first = Random(2).normal(1000), second = Random(3).normal(1000);
  DeviceArray a(*backend, 10, 100, first), b(*backend, 1, 1000);
  const auto slices = [](float* data, int64_t rows, int64_t count) {
    return Slices{.data = data, .rows = rows, .count = count, .pitch = 100};
  };
  backend->gather(slices(a.data() + 7, 9, 33), b.data() + 1);
  backend->scatter(b.data() + 1, slices(a.data() + 50, 3, 20));
  backend->fill(slices(a.data() + 99, 10, 1), 5);
  backend->fill(slices(a.data(), 10, 0), 6);
  const std::vector<float> scattered = a.get();
  backend->upload(second.data(), 1000 * sizeof(float), a.data());
  backend->gather(slices(a.data(), 1, 3), b.data() + 900);

  std::vector<float> gathered(1000, 0.0f), changed = first;
  for (int r = 0; r < 9; ++r) {
    std::copy_n(first.begin() + r * 100 + 7, 33, gathered.begin() + 1 + r * 33);
  }
  for (int r = 0; r < 3; ++r) {
    std::copy_n(gathered.begin() + 1 + r * 20, 20, changed.begin() + 50 + r * 100);
  }
  for (int r = 0; r < 10; ++r) changed[r * 100 + 99] = 5;
  std::copy_n(second.begin(), 3, gathered.begin() + 900);
  EXPECT_EQ(scattered, changed);
  EXPECT_EQ(b.get(), gathered);
  EXPECT_EQ(a.get(), second);
}

TEST_P(BackendMemory, FillsExactlyTheFloatsAskedFor) {
  const auto backend = this->backend();
  const std::vector<float> values = Random(4).normal(5000);
  for (int64_t count : {0, 1, 3, 257, 4099}) {
    for (float value : {0.0f, -1.5f, std::numeric_limits<float>::infinity()}) {
      DeviceArray array(*backend, 1, 5000, values);
      backend->fill(array.data() + 5, count, value);
      std::vector<float> expected = values;
      std::fill_n(expected.begin() + 5, count, value);
      EXPECT_EQ(array.get(), expected) << count << " of " << value;
    }
  }
}

TEST_P(BackendMemory, ThatCannotBeHadIsAnErrorThatSaysHowMuch) {
  const auto backend = this->backend();
  const std::string message = test::error_of([&] { backend->allocate(size_t{1} << 50); });
  EXPECT_THAT(message, testing::ContainsRegex("1048576(\\.0+)? GiB"));
  // The backend is as good as before.
  const DeviceArray array(*backend, 1, 3, {1, 2, 3});
  EXPECT_EQ(array.get(), (std::vector<float>{1, 2, 3}));
}

TEST_P(BackendGather, EmbedsTheRowsOfTheTokens) {
  for (int64_t D : {40, 100, 256, 2048}) {
    const auto backend = this->backend();
    const int64_t N = 97;
    const Weights table(*backend, dtype(), {N, D}, Random(5).normal(N * D));
    const test::Doubles wide = test::widen(table.host);
    backend->reserve({.tokens = 200, .segments = 200, .logit_rows = 200}, {1, 1, D, D, 8}, D, D);
    DeviceArray x(*backend, 200, D);
    for (int64_t T : {1, 2, 7, 9, 33, 200}) {
      StepData data = StepData::prompt(T);
      Random random(6);
      for (int32_t& token : data.tokens) token = static_cast<int32_t>(random.below(N));
      data.tokens.back() = N - 1;
      test::run_step(*backend, data.step(), [&] { backend->embed(table.device, x.view(T)); });
      const std::vector<float> found = x.get(T);
      for (int64_t t = 0; t < T; ++t) {
        ASSERT_TRUE(std::equal(found.begin() + t * D, found.begin() + (t + 1) * D,
                               wide.begin() + data.tokens[t] * D))
            << "D " << D << ", row " << t << " of " << T;
      }
    }
  }
}

TEST_P(BackendMemory, GathersTheRowsWhoseLogitsAreWanted) {
  for (int64_t D : {40, 100, 2048}) {
    const auto backend = this->backend();
    backend->reserve({.tokens = 70, .segments = 8, .logit_rows = 70}, {1, 1, D, D, 8}, D, D);
    const std::vector<float> values = Random(7).normal(70 * D);
    const DeviceArray x(*backend, 70, D, values);
    DeviceArray out(*backend, 70, D);
    std::vector<int32_t> all(70);
    std::iota(all.begin(), all.end(), 0);
    for (const std::vector<int32_t>& rows :
         {std::vector<int32_t>{0}, {69}, {3, 4, 5, 68}, {0, 9, 10, 11, 33, 64, 69}, all}) {
      StepData data = StepData::of({1, 1, 64, 4});
      data.logit_rows = rows;
      const int64_t R = static_cast<int64_t>(rows.size());
      test::run_step(*backend, data.step(),
                     [&] { backend->gather_logit_rows(x.view(), out.view(R)); });
      std::vector<float> expected;
      for (int32_t row : rows) {
        expected.insert(expected.end(), values.begin() + row * D, values.begin() + (row + 1) * D);
      }
      EXPECT_EQ(out.get(R), expected) << "D " << D << ", " << R << " rows";
    }
  }
}

}  // namespace
}  // namespace gsa
