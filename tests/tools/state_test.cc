// --save-state and --load-state: a run that stops and goes on is the run that never stopped.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/snapshot.h"
#include "tests/support/hf_source.h"
#include "tests/support/program.h"

namespace gsa::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

constexpr const char* kPrompt = "The king smiled, and said";

class State : public testing::Test {
 protected:
  json generate(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"generate", "-m", tale(), "--ignore-eos", "--json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return json::parse(output_of(arguments));
  }

  // A state of tale-10m after a few tokens.
  void save() { generate({"-p", kPrompt, "-n", "4", "--temp", "0", "--save-state", state_}); }

  // The complaint about --load-state.
  std::string refusal(const std::string& state) {
    const Outcome outcome = run({"generate", "-m", tale(), "--load-state", state, "-n", "1"});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    return outcome.err;
  }

  TemporaryFolder folder_;
  std::string state_ = folder_ / "state.safetensors";
};

TEST_F(State, GoesOnAsIfTheRunHadNeverStopped) {
  const std::vector<std::vector<std::string>> ways = {
      {"--temp", "0"},
      {"--seed", "7"},
      {"--seed", "7", "--temp", "1.2", "--top-k", "0", "--repeat-penalty", "1.3"}};
  for (std::vector<std::string> way : ways) {
    const auto with = [&](std::vector<std::string> more) {
      more.insert(more.end(), way.begin(), way.end());
      return generate(more);
    };
    const json whole = with({"-p", kPrompt, "-n", "40"});
    const json first = with({"-p", kPrompt, "-n", "13", "--save-state", state_});
    const json second = with({"--load-state", state_, "-n", "9", "--save-state", state_});
    const json third = with({"--load-state", state_, "-n", "18"});
    json tokens = json::array();
    std::string text;
    for (const json& part : {first, second, third}) {
      tokens.insert(tokens.end(), part.at("tokens").begin(), part.at("tokens").end());
      text += part.at("text").get<std::string>();
    }
    EXPECT_EQ(tokens, whole.at("tokens")) << way[1];
    EXPECT_EQ(text, whole.at("text"));
  }
}

TEST_F(State, OfAnyTypeIsOneFormatThatGoesOnInAnyType) {
  const auto with = [&](std::vector<std::string> more, const std::string& type) {
    more.insert(more.end(), {"--temp", "0", "--state-type", type});
    return generate(more);
  };
  for (const std::string type : {"bf16", "f16"}) {
    SCOPED_TRACE(type);
    const json whole = with({"-p", kPrompt, "-n", "30"}, type);
    json tokens = with({"-p", kPrompt, "-n", "13", "--save-state", state_}, type).at("tokens");
    const json rest = with({"--load-state", state_, "-n", "17"}, type).at("tokens");
    tokens.insert(tokens.end(), rest.begin(), rest.end());
    EXPECT_EQ(tokens, whole.at("tokens"));
    // Half the bytes in use, the same file.
    const json file = json::parse(output_of({"inspect", state_, "--json"}));
    for (const json& tensor : file.at("tensors")) {
      EXPECT_EQ(tensor.at("dtype"), tensor.at("name") == "tokens" ? "i32" : "f32");
    }
    EXPECT_EQ(with({"--load-state", state_, "-n", "5"}, "f32").at("tokens").size(), 5u);
  }
}

TEST_F(State, TakesAPromptThatFollows) {
  const json first = generate({"--tokens", "1 20 30", "-n", "0", "--save-state", state_});
  EXPECT_EQ(first.at("tokens"), json::array());
  const json second =
      generate({"--load-state", state_, "--tokens", "40 50", "-n", "10", "--temp", "0"});
  EXPECT_EQ(second.at("tokens"),
            generate({"--tokens", "1 20 30 40 50", "-n", "10", "--temp", "0"}).at("tokens"));
}

TEST_F(State, IsTheSameBytesTwice) {
  save();
  const std::string before = read_bytes(state_);
  save();
  EXPECT_EQ(read_bytes(state_), before);
}

TEST_F(State, OfAnotherModelIsRefusedByName) {
  const std::string other = folder_ / "other.safetensors";
  output_of({"convert", fixture("base"), other});
  output_of({"generate", "-m", other, "--tokens", "1", "-n", "2", "--save-state", state_});
  EXPECT_THAT(refusal(state_), AllOf(HasSubstr("state.safetensors"), HasSubstr("other.safetensors"),
                                     HasSubstr("tale-10m.safetensors")));
}

TEST_F(State, ThatIsNoneIsRefused) {
  EXPECT_THAT(refusal(folder_ / "absent"), HasSubstr("absent: cannot be opened: No such file"));
  EXPECT_THAT(refusal(folder_.path()), HasSubstr("is a folder, expected a safetensors file"));
  EXPECT_THAT(refusal(tale()), HasSubstr("not a snapshot"));
}

TEST_F(State, ThatIsCutOrBrokenIsRefused) {
  save();
  const std::string whole = read_bytes(state_);
  for (size_t left : {whole.size() - 1, whole.size() / 2, size_t{1000}, size_t{8}, size_t{0}}) {
    write_bytes(state_, whole.substr(0, left));
    EXPECT_THAT(refusal(state_), HasSubstr("state.safetensors")) << left << " bytes left";
  }
  std::string broken = whole;
  broken[9] = '\xff';
  write_bytes(state_, broken);
  EXPECT_THAT(refusal(state_), HasSubstr("state.safetensors"));
}

TEST_F(State, OfNoTokensIsRefused) {
  const Checkpoint model = Checkpoint::open(tale());
  const GsaConfig& config = model.config();
  const Snapshot nothing = {.tokens = {},
                            .state = std::vector<float>(config.state_bytes() / sizeof(float)),
                            .logits = std::vector<float>(config.vocab_size)};
  save_snapshot(nothing, config, {"tale-10m.safetensors", model.fingerprint()}, state_);
  EXPECT_THAT(refusal(state_), HasSubstr("holds no tokens"));
}

TEST_F(State, IsRefusedBeforeTheRunWhereItCannotBeSaved) {
  for (const std::string& path : {(folder_ / "no/such/folder").string(), folder_.path().string()}) {
    const Outcome outcome =
        run({"generate", "-m", tale(), "-p", kPrompt, "-n", "5", "--save-state", path});
    EXPECT_EQ(outcome.status, 1);
    EXPECT_EQ(outcome.out, "");
    EXPECT_THAT(outcome.err, HasSubstr(path));
  }
  EXPECT_EQ(folder_.names(), std::vector<std::string>{});
}

}  // namespace
}  // namespace gsa::test
