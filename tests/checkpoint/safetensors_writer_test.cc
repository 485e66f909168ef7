#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/safetensors.h"
#include "tests/support/error_of.h"
#include "tests/support/temporary_folder.h"

namespace gsa {
namespace {

using test::error_of;
using test::TemporaryFolder;
using testing::ElementsAre;
using testing::IsEmpty;

TEST(SafetensorsWriter, WritesWhatTheReaderReads) {
  const TemporaryFolder folder;
  const std::vector<float> floats = {1, 2, 3, 4, 5, 6};
  const std::string text = "odd";
  {
    SafetensorsWriter writer(folder / "m", {{"z", DType::kF32, {2, 3}}, {"a", DType::kU8, {3}}},
                             {{"key", "a \"quoted\"\nvalue"}});
    writer.write(floats.data(), 10);
    writer.write(reinterpret_cast<const char*>(floats.data()) + 10, 14);
    writer.write(text.data(), text.size());
    writer.finish();
  }
  const SafetensorsFile file = SafetensorsFile::open(folder / "m");
  EXPECT_EQ(shape_string(file.tensor("z")), "[2, 3]");
  EXPECT_THAT(std::vector<float>(file.tensor("z").f32(), file.tensor("z").f32() + 6), floats);
  EXPECT_EQ(std::string(static_cast<const char*>(file.tensor("a").data), 3), "odd");
  EXPECT_EQ(file.metadata("key"), "a \"quoted\"\nvalue");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.tensor("z").data) % 64, 0u);
}

TEST(SafetensorsWriter, WritesAFileWithoutTensorsOrMetadata) {
  const TemporaryFolder folder;
  SafetensorsWriter(folder / "m", {}, {}).finish();
  EXPECT_TRUE(SafetensorsFile::open(folder / "m").tensors().empty());
}

TEST(SafetensorsWriter, ShowsNothingUnderTheNameBeforeItIsFinished) {
  const TemporaryFolder folder;
  const uint8_t byte = 7;
  SafetensorsWriter writer(folder / "m", {{"a", DType::kU8, {1}}}, {});
  writer.write(&byte, 1);
  EXPECT_FALSE(std::filesystem::exists(folder / "m"));
  writer.finish();
  EXPECT_THAT(folder.names(), ElementsAre("m"));
}

TEST(SafetensorsWriter, LeavesNothingBehindWhenDestroyedUnfinished) {
  const TemporaryFolder folder;
  { SafetensorsWriter writer(folder / "m", {{"a", DType::kU8, {1}}}, {}); }
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(SafetensorsWriter, KeepsTheOldFileUntilTheNewOneIsWhole) {
  const TemporaryFolder folder;
  test::write_bytes(folder / "m", "old");
  { SafetensorsWriter writer(folder / "m", {{"a", DType::kU8, {1}}}, {}); }
  EXPECT_EQ(test::read_bytes(folder / "m"), "old");
  SafetensorsWriter(folder / "m", {}, {}).finish();
  EXPECT_NO_THROW(SafetensorsFile::open(folder / "m"));
}

TEST(SafetensorsWriter, LetsTwoWritersOfOneNameGoOn) {
  const TemporaryFolder folder;
  SafetensorsWriter first(folder / "m", {}, {{"who", "first"}});
  SafetensorsWriter second(folder / "m", {}, {{"who", "second"}});
  second.finish();
  first.finish();
  EXPECT_EQ(SafetensorsFile::open(folder / "m").metadata("who"), "first");
  EXPECT_THAT(folder.names(), ElementsAre("m"));
}

TEST(SafetensorsWriter, WritesThroughALink) {
  const TemporaryFolder folder;
  test::write_bytes(folder / "target", "old");
  std::filesystem::create_symlink("target", folder / "link");
  SafetensorsWriter(folder / "link", {}, {}).finish();
  EXPECT_TRUE(std::filesystem::is_symlink(folder / "link"));
  EXPECT_NO_THROW(SafetensorsFile::open(folder / "target"));
}

TEST(SafetensorsWriter, ReplacesAMetadataValueOfTheSameLength) {
  const TemporaryFolder folder;
  const std::string data(1000, 'x');
  SafetensorsWriter writer(folder / "m", {{"a", DType::kU8, {1000}}},
                           {{"before", "\"\n"}, {"hash", "0000"}, {"next", "n"}});
  writer.write(data.data(), data.size());
  writer.replace_metadata("hash", "beef");
  EXPECT_EQ(error_of([&] { writer.replace_metadata("hash", "12345"); }),
            (folder / "m").string() + ": metadata hash was not declared with 5 characters");
  EXPECT_EQ(error_of([&] { writer.replace_metadata("none", "1"); }),
            (folder / "m").string() + ": metadata none was not declared with 1 characters");
  writer.finish();
  const SafetensorsFile file = SafetensorsFile::open(folder / "m");
  EXPECT_EQ(file.metadata("hash"), "beef");
  EXPECT_EQ(file.metadata("before"), "\"\n");
  EXPECT_EQ(file.metadata("next"), "n");
  EXPECT_EQ(std::string(static_cast<const char*>(file.tensor("a").data), 1000), data);
}

TEST(SafetensorsWriter, RefusesMoreOrFewerBytesThanDeclared) {
  const TemporaryFolder folder;
  const std::string name = (folder / "m").string();
  const uint16_t data = 0;
  SafetensorsWriter writer(name, {{"a", DType::kU8, {1}}}, {});
  EXPECT_EQ(error_of([&] { writer.finish(); }),
            name + ": 0 bytes of tensor data given, 1 declared");
  EXPECT_EQ(error_of([&] { writer.write(&data, 2); }),
            name + ": more tensor data given than declared, 1 bytes");
}

TEST(SafetensorsWriter, RefusesWhatIsNoRegularFile) {
  EXPECT_EQ(error_of([] { SafetensorsWriter("/dev/null", {}, {}); }),
            "/dev/null: exists and is not a regular file");
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([&] { SafetensorsWriter(folder.path(), {}, {}); }),
            folder.path().string() + ": exists and is not a regular file");
  const std::string name = (folder / "none/m").string();
  EXPECT_EQ(error_of([&] { SafetensorsWriter(name, {}, {}); }),
            name + ": cannot be written: No such file or directory");
}

TEST(SafetensorsWriter, RefusesMetadataThatAreNotUtf8) {
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([&] {
              SafetensorsWriter(folder / "m", {}, {{"k", "\xff"}});
            }),
            (folder / "m").string() + ": metadata k is not valid UTF-8");
  EXPECT_THAT(folder.names(), IsEmpty());
}

}  // namespace
}  // namespace gsa
