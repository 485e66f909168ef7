#include "checkpoint/safetensors.h"

#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"
#include "tests/support/safetensors_bytes.h"
#include "tests/support/temporary_folder.h"

namespace gsa {
namespace {

using test::error_of;
using test::safetensors_bytes;
using test::TemporaryFolder;

std::string parse_error(const std::string& header, size_t data_size = 0) {
  const std::string bytes = safetensors_bytes(header, data_size);
  return error_of([&] { SafetensorsFile::parse(bytes, "m.safetensors"); });
}

TEST(SafetensorsFile, GivesTensorsAndMetadataInPlace) {
  const std::string bytes = safetensors_bytes(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})",
      16);
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "m");
  EXPECT_EQ(file.tensors().size(), 2u);
  EXPECT_EQ(file.tensor("a").rank, 0);
  EXPECT_EQ(file.tensor("a").elements(), 1);
  EXPECT_EQ(file.tensor("a").data, bytes.data() + bytes.size() - 16);
  EXPECT_EQ(file.tensor("b").data, bytes.data() + bytes.size() - 12);
  EXPECT_EQ(file.tensor("b").dtype, DType::kBF16);
  EXPECT_EQ(shape_string(file.tensor("b")), "[2, 3]");
  EXPECT_EQ(file.metadata("format"), "pt");
}

TEST(SafetensorsFile, AcceptsTensorsWithoutElementsAndHeadersPaddedWithBlanks) {
  const std::string bytes =
      safetensors_bytes(R"({"z":{"dtype":"F32","shape":[0,9],"data_offsets":[0,0]}}    )");
  EXPECT_EQ(SafetensorsFile::parse(bytes, "m").tensor("z").elements(), 0);
}

TEST(SafetensorsFile, NamesAnAbsentTensorOrMetadataKey) {
  const std::string bytes = safetensors_bytes("{}");
  const SafetensorsFile file = SafetensorsFile::parse(bytes, "m");
  EXPECT_EQ(error_of([&] { file.tensor("a"); }), "m: tensor a is missing");
  EXPECT_EQ(error_of([&] { file.metadata("k"); }), "m: metadata k is missing");
}

TEST(SafetensorsFile, RefusesAFileTooShortForItsHeader) {
  EXPECT_EQ(error_of([] { SafetensorsFile::parse("1234567", "m"); }),
            "m: 7 bytes are too few for a safetensors file");
  const std::string bytes = safetensors_bytes("{}");
  EXPECT_EQ(error_of([&] { SafetensorsFile::parse(bytes.substr(0, 9), "m"); }),
            "m: not a safetensors file: a header of 2 bytes is longer than the file, 9 bytes");
  EXPECT_EQ(error_of([] { SafetensorsFile::parse(std::string(8, '\xff') + "{}", "m"); }),
            "m: not a safetensors file: a header of 18446744073709551615 bytes is longer than the "
            "file, 10 bytes");
}

TEST(SafetensorsFile, RefusesAHeaderBeyondTheFormatsLimit) {
  EXPECT_EQ(parse_error(std::string(100'000'001, ' ')),
            "m.safetensors: header of 100000001 bytes, expected at most 100000000");
}

TEST(SafetensorsFile, RefusesAHeaderThatIsNoJsonObject) {
  EXPECT_EQ(parse_error("{\"a\":"), "m.safetensors: not valid JSON at line 1, column 6");
  EXPECT_EQ(parse_error("[]"), "m.safetensors: the header is no JSON object");
  EXPECT_EQ(parse_error("{\"a\":" + std::string(99, '[') + std::string(99, ']') + "}"),
            "m.safetensors: JSON is nested deeper than 32 levels");
}

TEST(SafetensorsFile, RefusesATensorNamedTwice) {
  EXPECT_EQ(parse_error(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                        R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
                        2),
            "m.safetensors: \"a\" appears twice in one JSON object");
}

TEST(SafetensorsFile, RefusesMetadataThatAreNoStrings) {
  EXPECT_EQ(parse_error(R"({"__metadata__":{"n":1}})"),
            "m.safetensors: __metadata__: field \"n\" is 1, expected a string");
  EXPECT_EQ(parse_error(R"({"__metadata__":"pt"})"),
            "m.safetensors: __metadata__: expected a JSON object, found \"pt\"");
}

TEST(SafetensorsFile, RefusesAWrongTensorByName) {
  struct Case {
    const char* fields;
    const char* message;
  };
  const Case cases[] = {
      {R"("shape":[16],"data_offsets":[0,16])", "field \"dtype\" is missing"},
      {R"("dtype":"U8","data_offsets":[0,16])", "field \"shape\" is missing"},
      {R"("dtype":"U8","shape":[16])", "field \"data_offsets\" is missing"},
      {R"("dtype":"U8","shape":[16],"data_offsets":[0,16],"x":1)", "unknown field \"x\""},
      {R"("dtype":8,"shape":[16],"data_offsets":[0,16])",
       "field \"dtype\" is 8, expected a string"},
      {R"("dtype":"F8_E4M3","shape":[16],"data_offsets":[0,16])",
       "dtype F8_E4M3 is not supported, expected F32, F16, BF16, F64, I32, I64 or U8"},
      {R"("dtype":"U8","shape":16,"data_offsets":[0,16])",
       "field \"shape\" is 16, expected a list"},
      {R"("dtype":"U8","shape":[-16],"data_offsets":[0,16])",
       "\"shape\" holds -16, expected integers of 0 to 9223372036854775807"},
      {R"("dtype":"U8","shape":[16.0],"data_offsets":[0,16])",
       "\"shape\" holds 16.0, expected integers of 0 to 9223372036854775807"},
      {R"("dtype":"U8","shape":[1,1,1,1,16],"data_offsets":[0,16])",
       "shape has 5 dimensions, expected at most 4"},
      {R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])",
       "shape [4294967296,4294967296] has too many elements"},
      {R"("dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0])",
       "shape [4611686018427387904] has too many elements"},
      {R"("dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0])",
       "shape [4294967296,4294967296,0] has too many elements"},
      {R"("dtype":"U8","shape":[16],"data_offsets":[0])",
       "field \"data_offsets\" is a list, expected a list of two integers"},
      {R"("dtype":"U8","shape":[16],"data_offsets":[0,"16"])",
       "\"data_offsets\" holds \"16\", expected integers of 0 to 9223372036854775807"},
      {R"("dtype":"U8","shape":[16],"data_offsets":[16,0])",
       "data_offsets [16, 0] end before they begin"},
      {R"("dtype":"U8","shape":[17],"data_offsets":[0,17])",
       "data_offsets [0, 17] run past the end of the file, which holds 16 data bytes"},
      {R"("dtype":"F32","shape":[5],"data_offsets":[0,16])",
       "data_offsets [0, 16] hold 16 bytes, but dtype and shape make 20"}};
  for (const Case& c : cases) {
    EXPECT_EQ(parse_error(std::string("{\"t\":{") + c.fields + "}}", 16),
              std::string("m.safetensors: tensor t: ") + c.message);
  }
}

std::string two_tensors(int begin1, int end1, int begin2, int end2) {
  return fmt::format(R"({{"a":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}},)"
                     R"("b":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{}]}}}})",
                     end1 - begin1, begin1, end1, end2 - begin2, begin2, end2);
}

TEST(SafetensorsFile, RefusesTensorsThatOverlap) {
  EXPECT_EQ(parse_error(two_tensors(0, 8, 4, 16), 16),
            "m.safetensors: tensor b: data_offsets [4, 16] overlap those of tensor a");
  EXPECT_EQ(parse_error(two_tensors(0, 16, 0, 16), 16),
            "m.safetensors: tensor b: data_offsets [0, 16] overlap those of tensor a");
}

TEST(SafetensorsFile, RefusesBytesThatBelongToNoTensor) {
  EXPECT_EQ(parse_error(two_tensors(0, 4, 8, 16), 16),
            "m.safetensors: tensor b: data_offsets begin at 8, leaving a gap after byte 4");
  EXPECT_EQ(parse_error(two_tensors(4, 8, 8, 16), 16),
            "m.safetensors: tensor a: data_offsets begin at 4, leaving a gap after byte 0");
  EXPECT_EQ(parse_error(two_tensors(0, 4, 4, 8), 16),
            "m.safetensors: 8 bytes behind the last tensor belong to none");
}

TEST(SafetensorsFile, KeepsErrorsOnOneLineWhateverTheNames) {
  const std::string message = parse_error(
      "{\"a\\nb" + std::string(200, 'x') + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,2]}})",
      2);
  EXPECT_THAT(message, testing::StartsWith("m.safetensors: tensor a?bxxx"));
  EXPECT_LT(message.size(), 250u);
}

TEST(SafetensorsFile, NamesAFileThatCannotBeRead) {
  const TemporaryFolder folder;
  const std::string missing = (folder / "none.safetensors").string();
  EXPECT_EQ(error_of([&] { SafetensorsFile::open(missing); }),
            missing + ": cannot be opened: No such file or directory");
  EXPECT_EQ(error_of([&] { SafetensorsFile::open(folder.path()); }),
            folder.path().string() + ": is a folder, expected a safetensors file");
  const std::string empty = (folder / "empty.safetensors").string();
  test::write_bytes(empty, "");
  EXPECT_EQ(error_of([&] { SafetensorsFile::open(empty); }),
            empty + ": 0 bytes are too few for a safetensors file");
}

TEST(SafetensorsFile, RefusesANamedPipeWithoutWaitingForIt) {
  const TemporaryFolder folder;
  const std::string pipe = (folder / "pipe").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(error_of([&] { SafetensorsFile::open(pipe); }), pipe + ": not a regular file");
}

TEST(SafetensorsFile, ViewsStayValidWhenTheObjectMoves) {
  SafetensorsFile file =
      SafetensorsFile::open(test::fixture("base") / "expected/golden.safetensors");
  const TensorView tokens = file.tensor("tokens");
  const int32_t first = *static_cast<const int32_t*>(tokens.data);
  const SafetensorsFile moved = std::move(file);
  EXPECT_EQ(moved.tensor("tokens").data, tokens.data);
  EXPECT_EQ(*static_cast<const int32_t*>(tokens.data), first);
}

// Every single byte of a small file changed, and every length cut: refused or accepted, no crash.
TEST(SafetensorsFile, SurvivesEveryByteChangedAndEveryCut) {
  const std::string bytes = safetensors_bytes(two_tensors(0, 8, 8, 16), 16);
  int refused = 0;
  for (size_t i = 0; i < bytes.size() - 16; ++i) {
    for (char value : {'\0', '"', '{', '9', '\xff'}) {
      std::string changed = bytes;
      changed[i] = value;
      try {
        SafetensorsFile::parse(changed, "m");
      } catch (const Error&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 500);
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::string cut = bytes.substr(0, size);
    EXPECT_THROW(SafetensorsFile::parse(cut, "m"), Error) << size;
  }
}

}  // namespace
}  // namespace gsa
