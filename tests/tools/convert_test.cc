#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/hf_source.h"
#include "tests/support/program.h"
#include "tests/support/safetensors_bytes.h"

namespace gsa::test {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(ConvertProgram, IsSilentAndGivesTheSameBytesTwice) {
  const TemporaryFolder folder;
  for (const char* name : {"a", "b"}) {
    const Outcome outcome = run({"convert", fixture("wide"), folder / name});
    EXPECT_EQ(outcome.status, 0);
    EXPECT_EQ(outcome.out + outcome.err, "");
  }
  EXPECT_EQ(read_bytes(folder / "a"), read_bytes(folder / "b"));
}

TEST(ConvertProgram, OverwritesOnlyWhenForced) {
  const TemporaryFolder folder;
  write_bytes(folder / "m", "precious");
  const Outcome refused = run({"convert", fixture("base"), folder / "m"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, HasSubstr("m: exists; --force overwrites it"));
  EXPECT_EQ(read_bytes(folder / "m"), "precious");
  output_of({"convert", fixture("base"), folder / "m", "--force"});
  output_of({"generate", "-m", folder / "m", "--tokens", "1", "-n", "1"});
}

TEST(ConvertProgram, NamesASourceThatCannotBeRead) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "empty");
  fs::create_directories(folder / "half");
  fs::copy(fixture("base") / "config.json", folder / "half");
  for (const char* name : {"absent", "empty", "half"}) {
    const Outcome outcome = run({"convert", folder / name, folder / "m"});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, HasSubstr((folder / name).string()));
  }
  EXPECT_THAT(folder.names(), ElementsAre("empty", "half"));
}

// A source that takes a while: two matrices of 1 GB, which are holes in the file.
struct LargeSource : HfSource {
  static constexpr int64_t kVocabulary = 1 << 22, kHidden = 64;

  LargeSource() {
    config["vocab_size"] = kVocabulary;
    const auto names = {"model.embeddings.weight", "lm_head.weight"};
    for (const char* name : names) tensors.erase(name);
    write();
    const fs::path weights = path / "model.safetensors";
    const std::string bytes = read_bytes(weights);
    uint64_t size = 0;
    std::memcpy(&size, bytes.data(), sizeof(size));
    nlohmann::json header = nlohmann::json::parse(bytes.substr(sizeof(size), size));
    const std::string data = bytes.substr(sizeof(size) + size);
    uint64_t end = data.size();
    for (const char* name : names) {
      const uint64_t begin = end;
      end += kVocabulary * kHidden * sizeof(float);
      header[name] = {
          {"dtype", "F32"}, {"shape", {kVocabulary, kHidden}}, {"data_offsets", {begin, end}}};
    }
    const std::string start = safetensors_bytes(header.dump());
    write_bytes(weights, start + data);
    fs::resize_file(weights, start.size() + end);
  }
};

TEST(ConvertProgram, LeavesNothingBehindWhenInterrupted) {
  const LargeSource source;
  for (int signal : {SIGINT, SIGTERM}) {
    const TemporaryFolder folder;
    Program program({"convert", source.path, folder / "m", "--type", "bf16"});
    while (folder.names().empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_THAT(folder.names(), ElementsAre(HasSubstr("m."))) << "the temporary file";
    program.send(signal);
    const Outcome outcome = program.finish();
    EXPECT_EQ(outcome.status, 1);
    EXPECT_EQ(outcome.err, "gsa: error: interrupted; nothing was written\n");
    EXPECT_THAT(folder.names(), ElementsAre());
  }
}

// A limit on the size of files makes write() fail as a full disk does, and needs no other disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_ = {};
  void (*handler_)(int);
};

TEST(ConvertProgram, LeavesNothingBehindWhenTheDiskIsFull) {
  const TemporaryFolder folder;
  write_bytes(folder / "m", "precious");
  Outcome outcome;
  {
    const FileSizeLimit limit(100'000);
    outcome = run({"convert", fixture("wide"), folder / "m", "--force"});
  }
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("m: cannot be written: File too large"));
  EXPECT_THAT(folder.names(), ElementsAre("m"));
  EXPECT_EQ(read_bytes(folder / "m"), "precious");
}

}  // namespace
}  // namespace gsa::test
