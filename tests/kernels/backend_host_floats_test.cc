// Floats that leave a device while it works on, and come back; 16 bits and floats.

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <future>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/half.h"
#include "tests/support/device_data.h"
#include "tests/support/devices.h"

namespace gsa {
namespace {

using test::DeviceArray;
using test::Random;

using BackendHostFloats = test::DeviceTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendHostFloats, testing::ValuesIn(test::kDevices),
                         test::device_name);

using BackendConvert = test::DeviceTypeTest;
INSTANTIATE_TEST_SUITE_P(Devices, BackendConvert, testing::ValuesIn(test::types_of_16_bits()),
                         test::device_type_name);

// Large enough that a copy to the host takes longer than several within the device's memory.
constexpr int64_t kMany = 1 << 22, kFew = 1000;

std::vector<float> all(int64_t count, float value) { return std::vector<float>(count, value); }

// So much host memory has been in use once, and nothing is under way: copies follow each other.
void warm_up(Backend& backend, const float* device, int64_t count) {
  std::vector<HostFloats> kept;
  for (int i = 0; i < 4; ++i) {
    kept.push_back(backend.copy_out(device, count));
    ASSERT_NE(kept.back().data(), nullptr);
  }
}

TEST_P(BackendHostFloats, AreThoseOfTheMomentWhateverIsWrittenThereAfterwards) {
  const auto backend = this->backend();
  const DeviceArray many(*backend, 1, kMany), few(*backend, 1, kFew);
  warm_up(*backend, many.data(), kMany);
  warm_up(*backend, few.data(), kFew);
  std::vector<HostFloats> kept;
  for (int i = 0; i < 12; ++i) {
    backend->fill(many.data(), kMany, static_cast<float>(i));
    kept.push_back(backend->copy_out(many.data(), kMany));
    backend->fill(few.data(), kFew, static_cast<float>(-i));
    kept.push_back(backend->copy_out(few.data(), kFew));
    EXPECT_EQ(kept.back().size(), static_cast<size_t>(kFew));
  }
  backend->fill(many.data(), kMany, 99);
  backend->fill(few.data(), kFew, 99);
  for (int i = 11; i >= 0; --i) {
    EXPECT_EQ(kept[2 * i], all(kMany, static_cast<float>(i))) << i;
    EXPECT_EQ(kept[2 * i + 1], all(kFew, static_cast<float>(-i))) << i;
  }
}

TEST_P(BackendHostFloats, ComeBackThoughTheyAreGivenUpAtOnceAndTheirMemoryUsedAgain) {
  const auto backend = this->backend();
  const DeviceArray from(*backend, 1, kMany), to(*backend, 1, 4 * kMany);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 4; ++i) {
      backend->fill(from.data(), kMany, static_cast<float>(10 * round + i));
      backend->copy_in(backend->copy_out(from.data(), kMany), to.data() + i * kMany);
    }
    backend->fill(from.data(), kMany, -1);
    EXPECT_EQ(backend->copy_out(from.data(), kMany), all(kMany, -1));
    for (int i = 0; i < 4; ++i) {
      EXPECT_EQ(backend->copy_out(to.data() + i * kMany, kMany),
                all(kMany, static_cast<float>(10 * round + i)));
    }
  }
}

TEST_P(BackendHostFloats, ComeFromPlainMemoryToo) {
  const auto backend = this->backend();
  const std::vector<float> values = Random(1).normal(kFew);
  const DeviceArray array(*backend, 1, kFew);
  backend->copy_in(std::vector<float>(values), array.data());
  EXPECT_EQ(array.get(), values);
}

TEST_P(BackendHostFloats, AreReadByAnyThreadAndOutliveTheBackend) {
  HostFloats kept;
  {
    const auto backend = this->backend();
    const DeviceArray array(*backend, 1, kMany);
    warm_up(*backend, array.data(), kMany);
    const std::vector<float> ones = all(kMany, 1);
    const HostFloats before[] = {backend->copy_out(array.data(), kMany),
                                 backend->copy_out(array.data(), kMany)};
    backend->fill(array.data(), kMany, 1);
    const HostFloats given = backend->copy_out(array.data(), kMany);
    std::vector<std::future<bool>> readers;
    for (int i = 0; i < 3; ++i) {
      readers.push_back(std::async(std::launch::async, [&] {
        return given.data()[kMany - 1] == 1 && given == ones;  // the last comes last
      }));
    }
    for (auto& reader : readers) EXPECT_TRUE(reader.get());
    backend->fill(array.data(), kMany, 2);
    kept = backend->copy_out(array.data(), kMany);
  }
  EXPECT_EQ(kept, all(kMany, 2));
}

TEST_P(BackendHostFloats, OfOneBackendAreRestoredByAnother) {
  const auto first = backend(), second = backend();
  const DeviceArray from(*first, 1, kMany), to(*second, 1, kMany), other(*second, 1, kMany);
  first->fill(from.data(), kMany, 3);
  HostFloats kept = first->copy_out(from.data(), kMany);
  ASSERT_NE(kept.data(), nullptr);
  // The second has much to do before.
  for (int i = 0; i < (device() == "cpu" ? 1 : 100); ++i) {
    second->gather({.data = other.data(), .rows = 1, .count = kMany}, to.data());
  }
  second->copy_in(std::exchange(kept, {}), to.data());
  first->fill(from.data(), kMany, 4);
  kept = first->copy_out(from.data(), kMany);  // to the same host memory
  EXPECT_EQ(to.get(), all(kMany, 3));
  EXPECT_EQ(kept, all(kMany, 4));
}

TEST_P(BackendHostFloats, NeedNoDeviceMemoryBesides) {
  const auto backend = this->backend();
  const DeviceArray array(*backend, 1, kMany);
  backend->fill(array.data(), kMany, 0);  // whose kernel is loaded when it first runs
  std::vector<Buffer> rest;
  size_t bytes = device() == "cpu" ? 0 : size_t{1} << 36;
  while (bytes > kMany * sizeof(float) / 2) {
    try {
      rest.push_back(backend->allocate(bytes));
    } catch (const Error&) {
      bytes /= 2;
    }
  }
  std::vector<HostFloats> kept;
  for (int i = 0; i < 6; ++i) {
    backend->fill(array.data(), kMany, static_cast<float>(i));
    kept.push_back(backend->copy_out(array.data(), kMany));
  }
  for (int i = 0; i < 6; ++i) EXPECT_EQ(kept[i], all(kMany, static_cast<float>(i)));
}

TEST_P(BackendConvert, WidensEveryNumberOf16BitsAndNarrowsItBack) {
  const auto backend = this->backend();
  std::vector<uint16_t> bits(1 << 16);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  const int64_t count = static_cast<int64_t>(bits.size());
  const DeviceArray stored(*backend, 1, count / 2), wide(*backend, 1, count);
  backend->upload(bits.data(), 2 * count, stored.data());
  const Slices all{.data = stored.data(), .type = dtype(), .rows = 1, .count = count};
  backend->gather(all, wide.data());
  backend->fill(all, 0);
  backend->scatter(wide.data(), all);
  std::vector<uint16_t> back(count);
  backend->download(stored.data(), 2 * count, back.data());
  const auto value = [&](uint16_t b) {
    return dtype() == DType::kF16 ? f16_to_f32(b) : bf16_to_f32(b);
  };
  const std::vector<float> found = wide.get();
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(value(bits[i]))) {
      EXPECT_TRUE(std::isnan(found[i]) && std::isnan(value(back[i]))) << i;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(found[i]), std::bit_cast<uint32_t>(value(bits[i])));
      EXPECT_EQ(back[i], bits[i]);
    }
  }
}

TEST_P(BackendConvert, RoundsToNearestEven) {
  const auto backend = this->backend();
  std::vector<float> values;
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 9973) {
    const float value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (!std::isnan(value)) values.push_back(value);
  }
  for (float x = 1; x < 2; x += 0x1p-12f) values.push_back(x);  // with ties of both types
  if (values.size() % 2 == 1) values.push_back(0);
  const int64_t count = static_cast<int64_t>(values.size());
  const DeviceArray floats(*backend, 1, count, values), stored(*backend, 1, count / 2);
  backend->scatter(floats.data(),
                   {.data = stored.data(), .type = dtype(), .rows = 1, .count = count});
  std::vector<uint16_t> found(count);
  backend->download(stored.data(), 2 * count, found.data());
  for (int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(found[i], dtype() == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]))
        << values[i];
  }
}

}  // namespace
}  // namespace gsa
