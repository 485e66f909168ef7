#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "tests/support/hf_source.h"
#include "tests/support/program.h"
#include "text/tokenizer.h"

namespace gsa::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

constexpr const char* kPrompt = "Once upon a time there was a little girl";

// `gsa generate` on tale-10m with a seed.
std::vector<std::string> generate(std::vector<std::string> more) {
  std::vector<std::string> arguments = {"generate", "-m", tale(), "--seed", "7"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

json generate_json(std::vector<std::string> more) {
  more.push_back("--json");
  return json::parse(output_of(generate(std::move(more))));
}

// Text as it was streamed, without the newline at its end.
std::string streamed(const std::string& out) {
  EXPECT_TRUE(out.ends_with('\n')) << out;
  return out.substr(0, out.size() - 1);
}

Tokenizer tale_tokenizer() { return Tokenizer(Checkpoint::open(tale())); }

TEST(Generate, StreamsTheTextThatItReportsAsJson) {
  const json report = generate_json({"-p", kPrompt, "-n", "30"});
  EXPECT_EQ(streamed(output_of(generate({"-p", kPrompt, "-n", "30"}))), report.at("text"));
  EXPECT_EQ(report.at("tokens").size(), 30u);
  EXPECT_EQ(report.at("finish_reason"), "length");
  EXPECT_EQ(report.at("seed"), 7);
  EXPECT_EQ(report.at("prompt"), kPrompt);
  const size_t prompt_tokens = tale_tokenizer().encode(kPrompt).size();
  EXPECT_EQ(report.at("prompt_tokens").size(), prompt_tokens);
  EXPECT_EQ(report.at("usage").at("prompt_tokens"), prompt_tokens);
  EXPECT_EQ(report.at("usage").at("completion_tokens"), 30);
}

TEST(Generate, TakesThePromptFromAFlagAFileStandardInputOrIds) {
  const TemporaryFolder folder;
  write_bytes(folder / "prompt", kPrompt);
  std::string ids;
  for (int32_t id : tale_tokenizer().encode(kPrompt)) ids += std::to_string(id) + ",";
  const std::string expected = output_of(generate({"-p", kPrompt, "-n", "12"}));
  EXPECT_EQ(output_of(generate({"-f", folder / "prompt", "-n", "12"})), expected);
  EXPECT_EQ(output_of(generate({"-f", "-", "-n", "12"}), kPrompt), expected);
  EXPECT_EQ(output_of(generate({"--tokens", ids, "-n", "12"})), expected);
}

TEST(Generate, EchoesThePromptWhenAsked) {
  const std::string text = output_of(generate({"-p", kPrompt, "-n", "5"}));
  EXPECT_EQ(output_of(generate({"-p", kPrompt, "-n", "5", "--echo"})), kPrompt + text);
}

TEST(Generate, BeginsFromNothingWithAnEmptyPrompt) {
  const json report = generate_json({"-p", "", "-n", "8"});
  EXPECT_EQ(report.at("prompt_tokens"), json({1}));  // BOS
  EXPECT_EQ(report.at("tokens").size(), 8u);
}

TEST(Generate, DependsOnTheSeedAlone) {
  const std::string text = output_of(generate({"-p", kPrompt, "-n", "40", "--threads", "1"}));
  EXPECT_EQ(output_of(generate({"-p", kPrompt, "-n", "40", "--threads", "2"})), text);
  EXPECT_NE(output_of({"generate", "-m", tale(), "-p", kPrompt, "-n", "40", "--seed", "8"}), text);
}

TEST(Generate, StopsBeforeAStringThatSpansTokens) {
  const json whole = generate_json({"-p", kPrompt, "-n", "60"});
  const std::string text = whole.at("text");
  size_t at = text.size() / 2;
  while (text.find(text.substr(at, 14)) != at) ++at;  // not a phrase that came before
  const std::string stop = text.substr(at, 14);
  ASSERT_EQ(stop.size(), 14u);
  for (int32_t token : whole.at("tokens")) {
    ASSERT_THAT(tale_tokenizer().piece(token), testing::Not(HasSubstr(stop)));
  }
  const json stopped =
      generate_json({"-p", kPrompt, "-n", "60", "--stop", "never", "--stop", stop});
  EXPECT_EQ(stopped.at("text"), text.substr(0, at));
  EXPECT_EQ(stopped.at("finish_reason"), "stop");
  const std::string out = output_of(generate({"-p", kPrompt, "-n", "60", "--stop", stop}));
  EXPECT_EQ(streamed(out), text.substr(0, at));
}

TEST(Generate, StopsAtATokenId) {
  const json whole = generate_json({"-p", kPrompt, "-n", "20", "--temp", "0"});
  const std::vector<int32_t> tokens = whole.at("tokens");
  const int32_t stop = tokens[9];
  const auto first = std::find(tokens.begin(), tokens.end(), stop) - tokens.begin();
  const json stopped = generate_json(
      {"-p", kPrompt, "-n", "20", "--temp", "0", "--stop-token", std::to_string(stop)});
  EXPECT_EQ(stopped.at("tokens").size(), static_cast<size_t>(first) + 1);
  EXPECT_EQ(stopped.at("finish_reason"), "stop");
}

TEST(Generate, ReportsTheLikeliestTokens) {
  const json report = generate_json({"-p", kPrompt, "-n", "3", "--temp", "0", "--logprobs", "2"});
  ASSERT_EQ(report.at("logprobs").size(), 3u);
  for (const json& step : report.at("logprobs")) {
    ASSERT_EQ(step.at("top_logprobs").size(), 2u);
    EXPECT_EQ(step.at("top_logprobs")[0].at("id"), step.at("id"));
    EXPECT_LE(step.at("logprob").get<double>(), 0);
  }
}

TEST(Generate, ReadsAPromptOfAHundredThousandTokens) {
  HfSource source;  // a small model with a tokenizer
  source.write();
  write_bytes(source.path / "tokenizer.model",
              read_bytes(GSA_SOURCE_DIR "/tests/data/text/unigram.model"));
  const std::string model = source.folder / "model.safetensors";
  output_of({"convert", source.path, model});
  const std::string passage = read_bytes(GSA_SOURCE_DIR "/tests/data/text/passage.txt");
  const Tokenizer tokenizer(Checkpoint::open(model));
  std::string text;
  while (tokenizer.encode(text).size() < 100'000) text += text.empty() ? passage : text;
  const json report = json::parse(
      output_of({"generate", "-m", model, "-f", "-", "-n", "4", "--temp", "0", "--json"}, text));
  EXPECT_GE(report.at("usage").at("prompt_tokens"), 100'000);
  EXPECT_EQ(report.at("prompt_tokens"), json(tokenizer.encode(text)));
  EXPECT_EQ(report.at("tokens").size(), 4u);
}

// Ctrl-C and closed pipes.

TEST(Generate, EndsWithWhatThereIsWhenInterrupted) {
  for (int signal : {SIGINT, SIGTERM}) {
    Program program(generate({"-p", kPrompt, "-n", "1000000", "--ignore-eos", "--temp", "0"}));
    program.await_output(60);
    program.send(signal);
    const Outcome outcome = program.finish();
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    const std::string text = streamed(outcome.out);
    EXPECT_GE(text.size(), 60u);
    const std::string whole =
        output_of(generate({"-p", kPrompt, "-n", "30", "--ignore-eos", "--temp", "0"}));
    const size_t common = std::min(text.size(), whole.size() - 1);
    EXPECT_EQ(text.substr(0, common), whole.substr(0, common));
  }
}

TEST(Generate, SavesWhereItWasInterrupted) {
  const TemporaryFolder folder;
  const std::string state = folder / "state.safetensors";
  Program program(
      generate({"-p", kPrompt, "-n", "1000000", "--ignore-eos", "--save-state", state}));
  program.await_output(60);
  program.send(SIGINT);
  const Outcome outcome = program.finish();
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const std::string text = streamed(outcome.out);
  const std::string more =
      streamed(output_of(generate({"--load-state", state, "-n", "20", "--ignore-eos"})));
  const size_t tokens =
      json::parse(output_of({"inspect", state, "--json"})).at("tokens").get<size_t>() -
      tale_tokenizer().encode(kPrompt).size();
  EXPECT_EQ(text + more, streamed(output_of(generate(
                             {"-p", kPrompt, "-n", std::to_string(tokens + 20), "--ignore-eos"}))));
}

TEST(Generate, IsQuietWhenItsReaderLeaves) {
  Program program(generate({"-p", kPrompt, "-n", "1000000", "--ignore-eos"}));
  program.await_output(40);
  program.close_output();
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.signal, SIGPIPE);
  EXPECT_EQ(outcome.err, "");
}

TEST(Generate, EndsWithAnErrorWhenItsOutputCannotBeWritten) {
  const std::vector<std::vector<std::string>> ways = {{"-n", "1000000", "--ignore-eos"},
                                                      {"-n", "3", "--json"}};
  for (std::vector<std::string> way : ways) {
    way.insert(way.end(), {"-p", kPrompt});
    const Outcome outcome = Program(generate(way), "", "/dev/full").finish();
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, HasSubstr("standard output cannot be written: No space left"));
  }
}

}  // namespace
}  // namespace gsa::test
