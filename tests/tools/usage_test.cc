// What a user gets for a mistake: one line on stderr that names it, nothing on stdout, and 2 for a
// wrong command line or 1 for what could not be done.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/hf_source.h"
#include "tests/support/program.h"

namespace gsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StartsWith;

std::string complaint(int status, const std::vector<std::string>& arguments) {
  const Outcome outcome = run(arguments);
  EXPECT_EQ(outcome.status, status) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
  EXPECT_THAT(outcome.err, StartsWith("gsa: error: "));
  EXPECT_LT(outcome.err.size(), 300u) << outcome.err;
  return outcome.err;
}

TEST(Usage, NamesAWrongFlagAndExitsWithTwo) {
  const std::string m = tale();
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "a command is required"},
      {{"frobnicate"}, "frobnicate"},
      {{"generate", "-p", "a"}, "--model"},
      {{"generate", "-m", m}, "-p, -f, --tokens or --load-state"},
      {{"generate", "-m", m, "-p", "a", "--colour"}, "--colour"},
      {{"generate", "-m", m, "-p", "a", "-f", "b"}, "--file"},
      {{"generate", "-m", m, "-p", "a", "--device", "tpu"}, "--device: tpu not in {auto,cpu,cuda}"},
      {{"generate", "-m", m, "-p", "a", "--threads", "-1"}, "--threads"},
      {{"score", "-m", m, "--tokens", "1", "--state-type", "q8"},
       "--state-type: q8 not in {f32,bf16,f16}"},
      {{"generate", "-m", m, "-p", "a", "-n", "many"}, "--max-tokens"},
      {{"generate", "-m", m, "-p", "a", "--temp", "-1"}, "at least 0, found -1"},
      {{"generate", "-m", m, "-p", "a", "--temp", "nan"}, "at least 0, found nan"},
      {{"generate", "-m", m, "-p", "a", "--repeat-penalty", "0"}, "above 0, found 0"},
      {{"generate", "-m", m, "-p", "a", "--top-p", "1.5"}, "--top-p"},
      {{"generate", "-m", m, "-p", "a", "--seed", "x"}, "--seed"},
      {{"convert", "a"}, "DST"},
      {{"convert", "a", "b", "--type", "f64"}, "--type"},
      {{"score", "-m", m}, "-f or --tokens"},
      {{"perplexity", "-m", m, "-f", "x", "--window", "0"}, "--window"},
      {{"inspect"}, "FILE"},
  };
  for (const auto& [arguments, name] : cases) {
    EXPECT_THAT(complaint(2, arguments), HasSubstr(name));
  }
}

TEST(Usage, SaysWhatIsNoModel) {
  const TemporaryFolder folder;
  const std::string other = folder / "other";
  const std::vector<std::vector<std::string>> commands = {{"generate", "-p", "a", "-m"},
                                                          {"score", "--tokens", "1", "-m"},
                                                          {"perplexity", "-f", other, "-m"}};
  for (std::vector<std::string> command : commands) {
    const auto with = [&](const std::string& model) {
      std::vector<std::string> arguments = command;
      arguments.push_back(model);
      return complaint(1, arguments);
    };
    EXPECT_THAT(with(folder / "absent"), HasSubstr("absent: cannot be opened: No such file"));
    EXPECT_THAT(with(fixture("base")), AllOf(HasSubstr("fixtures/base: a folder"),
                                             HasSubstr("gsa convert " + fixture("base").string())));
    EXPECT_THAT(with(fixture("base") / "model.safetensors"),
                AllOf(HasSubstr("not a converted checkpoint"), HasSubstr("gsa convert")));
    EXPECT_THAT(with(GSA_SOURCE_DIR "/README.md"), HasSubstr("README.md"));
  }
}

TEST(Usage, RefusesACheckpointThatIsCutOrBroken) {
  const TemporaryFolder folder;
  const std::string path = folder / "cut.safetensors";
  const std::string whole = read_bytes(tale());
  for (size_t left : {whole.size() - 1, whole.size() / 2, size_t{5000}, size_t{8}, size_t{0}}) {
    write_bytes(path, whole.substr(0, left));
    EXPECT_THAT(complaint(1, {"generate", "-m", path, "-p", "a"}), HasSubstr("cut.safetensors"));
    EXPECT_THAT(complaint(1, {"inspect", path}), HasSubstr("cut.safetensors"));
  }
  std::string broken = whole;
  broken.replace(broken.find("\"hidden_size\\\":256"), 18, "\"hidden_size\\\":255");
  write_bytes(path, broken);
  EXPECT_THAT(complaint(1, {"generate", "-m", path, "-p", "a"}), HasSubstr("cut.safetensors"));
}

TEST(Usage, SaysWhichInputCannotBeUsed) {
  const TemporaryFolder folder;
  const std::string m = tale(), absent = folder / "absent", base = folder / "base.safetensors";
  write_bytes(folder / "empty", "");
  EXPECT_THAT(complaint(1, {"generate", "-m", m, "-f", absent}),
              HasSubstr("absent: cannot be read"));
  EXPECT_THAT(complaint(1, {"generate", "-m", m, "-f", folder.path()}), HasSubstr("a folder"));
  EXPECT_THAT(complaint(1, {"generate", "-m", m, "--tokens", "1 two"}), HasSubstr("found \"two\""));
  EXPECT_THAT(complaint(1, {"generate", "-m", m, "--tokens", "1 4096"}), HasSubstr("found 4096"));
  EXPECT_THAT(complaint(1, {"generate", "-m", m, "-p", "a", "--logit-bias", "x"}),
              HasSubstr("--logit-bias x"));
  EXPECT_THAT(complaint(1, {"score", "-m", m, "--tokens", "1 4096"}), HasSubstr("4096"));
  EXPECT_THAT(complaint(1, {"perplexity", "-m", m, "-f", folder / "empty"}),
              HasSubstr("holds no text"));
  output_of({"convert", fixture("base"), base});
  EXPECT_THAT(complaint(1, {"generate", "-m", base, "-p", "a"}),
              AllOf(HasSubstr("base.safetensors has no tokenizer"), HasSubstr("--tokens")));
  EXPECT_THAT(complaint(1, {"inspect", absent}), HasSubstr("absent"));
}

TEST(Usage, HelpsWithEveryCommand) {
  for (const char* command : {"convert", "inspect", "generate", "score", "perplexity"}) {
    const std::string help = output_of({command, "--help"});
    EXPECT_THAT(help, HasSubstr(std::string("gsa ") + command));
    EXPECT_THAT(output_of({"--help"}), HasSubstr(command));
  }
  EXPECT_EQ(output_of({"--version"}), "gsa " GSA_VERSION "\n");
}

TEST(Inspect, KnowsFoldersCheckpointsAndSnapshots) {
  using nlohmann::json;
  const TemporaryFolder folder;
  const std::string checkpoint = folder / "c.safetensors", state = folder / "s.safetensors";
  output_of({"convert", fixture("gqa"), checkpoint});
  output_of({"generate", "-m", checkpoint, "--tokens", "1 2 3", "-n", "2", "--ignore-eos",
             "--save-state", state});
  const auto inspect = [](const std::string& path) {
    return json::parse(output_of({"inspect", path, "--json"}));
  };
  const json hf = inspect(fixture("gqa")), converted = inspect(checkpoint), saved = inspect(state);
  EXPECT_EQ(hf.at("kind"), "Hugging Face folder");
  EXPECT_EQ(converted.at("kind"), "checkpoint");
  EXPECT_EQ(saved.at("kind"), "snapshot");
  EXPECT_EQ(saved.at("fingerprint"), converted.at("fingerprint"));
  EXPECT_EQ(saved.at("model"), "c.safetensors");
  EXPECT_EQ(saved.at("tokens"), 5);
  for (const json& of : {hf, converted, saved}) {
    EXPECT_EQ(of.at("config"), hf.at("config"));
    // 2 layers, 2 memories, 16 wide, 32 slots, keys and values, 4 bytes
    EXPECT_EQ(of.at("state_bytes"), 2 * 2 * 32 * (16 + 16) * 4);
  }
  EXPECT_EQ(json::parse(output_of({"inspect", state, "--json", "--state-type", "bf16"}))
                .at("state_bytes"),
            2 * 2 * 32 * (16 + 16) * 2);
  EXPECT_EQ(hf.at("type"), "bf16");
  EXPECT_EQ(converted.at("type"), "bf16");
  EXPECT_THAT(output_of({"inspect", checkpoint}), HasSubstr("layers.0.qkvf"));
}

}  // namespace
}  // namespace gsa::test
