#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/program.h"

namespace gsa::test {
namespace {

using nlohmann::json;

const std::string kPassage = GSA_SOURCE_DIR "/tests/data/text/passage.txt";

// passage.json is float64 arithmetic by the reference (make_perplexity.py).
TEST(Perplexity, AgreesWithTheReference) {
  const json expected = json::parse(read_bytes(GSA_SOURCE_DIR "/tests/data/text/passage.json"));
  for (const json& row : expected.at("windows")) {
    const std::string window = std::to_string(row.at("window").get<int>());
    const json found = json::parse(
        output_of({"perplexity", "-m", tale(), "-f", kPassage, "--window", window, "--json"}));
    EXPECT_EQ(found.at("tokens"), expected.at("tokens"));
    const double ppl = row.at("ppl"), nll = row.at("nll");
    EXPECT_NEAR(found.at("ppl").get<double>(), ppl, 1e-3 * ppl) << "window " << window;
    const double bits = nll * expected.at("tokens").get<double>() / std::log(2.0) /
                        expected.at("bytes").get<double>();
    EXPECT_NEAR(found.at("bits_per_byte").get<double>(), bits, 1e-3 * bits);
    std::printf("window %s: perplexity %.6f, reference %.6f\n", window.c_str(),
                found.at("ppl").get<double>(), ppl);
  }
}

TEST(Perplexity, PrintsWhatTheJsonHolds) {
  const std::string text = "The king smiled.";
  const json found =
      json::parse(output_of({"perplexity", "-m", tale(), "-f", "-", "--json"}, text));
  char expected[200];
  std::snprintf(expected, sizeof(expected), "tokens %d\nnll %.6f\nppl %.6f\nbits_per_byte %.6f\n",
                found.at("tokens").get<int>(), found.at("nll").get<double>(),
                found.at("ppl").get<double>(), found.at("bits_per_byte").get<double>());
  EXPECT_EQ(output_of({"perplexity", "-m", tale(), "-f", "-"}, text), expected);
}

TEST(Score, SumsToThePerplexityOfOneWindow) {
  const std::string text = read_bytes(kPassage).substr(0, 700);
  const json score = json::parse(output_of({"score", "-m", tale(), "-f", "-", "--json"}, text));
  const json perplexity =
      json::parse(output_of({"perplexity", "-m", tale(), "-f", "-", "--json"}, text));
  // Scoring begins with BOS, whose own log-probability is none.
  const double tokens = perplexity.at("tokens");
  EXPECT_EQ(score.at("tokens").size(), tokens + 1);
  EXPECT_NEAR(-score.at("sum").get<double>() / tokens, perplexity.at("nll").get<double>(), 1e-6);
}

TEST(Score, LeavesNoDumpBehindWhenInterrupted) {
  const TemporaryFolder folder;
  std::string text;
  while (text.size() < 1'000'000) text += read_bytes(kPassage);
  Program program({"score", "-m", tale(), "-f", "-", "--dump", folder / "dump"}, text);
  while (folder.names().empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  program.send(SIGINT);
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_EQ(outcome.err, "gsa: error: interrupted; nothing was written\n");
  EXPECT_EQ(folder.names(), std::vector<std::string>{});
}

TEST(Score, PrintsALineForEveryToken) {
  const std::string out = output_of({"score", "-m", tale(), "--tokens", "1 5 9"});
  EXPECT_EQ(std::count(out.begin(), out.end(), '\n'), 3);
  EXPECT_TRUE(out.starts_with("0\t1\t-\t<s>\n1\t5\t-")) << out;
}

}  // namespace
}  // namespace gsa::test
