// `gsa chat` on a terminal: a pseudo terminal types, and looks at what is shown.

#include <cstring>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "checkpoint/safetensors.h"
#include "tests/support/program.h"
#include "tests/support/temporary_folder.h"
#include "tests/support/terminal.h"

namespace gsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr const char* kCtrlC = "\x03";
constexpr const char* kCtrlD = "\x04";

class ChatTerminalTest : public testing::Test {
 protected:
  std::vector<std::string> arguments(std::vector<std::string> more = {}) const {
    std::vector<std::string> all = {"chat",   "-m", tale(), "--threads", "1",
                                    "--seed", "7",  "-n",   "16"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  Terminal::Environment environment(Terminal::Environment more = {}) const {
    more.try_emplace("XDG_STATE_HOME", folder_.path().string());
    more.try_emplace("HOME", folder_.path().string());
    return more;
  }

  std::string file(const std::string& name) const { return (folder_ / name).string(); }

  // The tokens of a saved conversation.
  std::vector<int32_t> tokens(const std::string& name) const {
    const SafetensorsFile saved = SafetensorsFile::open(file(name));
    const TensorView& view = saved.tensor("tokens");
    std::vector<int32_t> list(view.elements());
    std::memcpy(list.data(), view.data, view.bytes());
    return list;
  }

  nlohmann::json conversation(const std::string& name) const {
    const SafetensorsFile saved = SafetensorsFile::open(file(name));
    return nlohmann::json::parse(saved.metadata("gsa.conversation"));
  }

  TemporaryFolder folder_;
};

TEST_F(ChatTerminalTest, TalksStopsGoesBackSavesAndGoesOnAsIfItHadNeverStopped) {
  Terminal first(arguments(), environment());
  EXPECT_THAT(first.until(Terminal::kReady),
              AllOf(HasSubstr("story teller"), HasSubstr("1.25 MiB"), HasSubstr("/help")));
  const std::string begin = first.enter("Once upon a time");
  EXPECT_GT(begin.size(), 20u);
  const std::string answer = first.enter("The king said");
  EXPECT_NE(first.enter("/retry"), answer) << "another seed, another answer";
  EXPECT_EQ(first.enter("/retry 7"), answer) << "the same seed, the same answer";

  // Ctrl-C in the middle of an answer.
  first.enter("/set max-tokens 1000000");
  first.enter("/set ignore-eos on");
  first.send("It was\r");
  first.until("\033[?2004l");
  for (int blanks = 0; blanks < 10; ++blanks) first.until(" ");
  first.send(kCtrlC);
  EXPECT_THAT(first.until(Terminal::kReady), HasSubstr("[stopped]"));
  first.enter("/set max-tokens 16");
  EXPECT_THAT(first.enter("/save " + file("stopped")), HasSubstr("3 turns"));
  EXPECT_EQ(conversation("stopped")["turns"][2]["finish_reason"], "cancelled");
  EXPECT_THAT(first.enter("/undo"), HasSubstr("the last text was: The king said"));

  EXPECT_THAT(first.enter("/save " + file("before")), HasSubstr("2 turns"));
  const std::string then = first.enter("And then");
  first.enter("So they");
  first.enter("/save " + file("unbroken"));
  first.send(kCtrlD);
  EXPECT_EQ(first.finish(), 0);
  EXPECT_TRUE(first.is_cooked());

  Terminal second(arguments({"--load", file("before")}), environment());
  EXPECT_THAT(second.until(Terminal::kReady), HasSubstr("2 turns"));
  EXPECT_EQ(second.enter("And then"), then);
  second.enter("So they");
  second.enter("/save " + file("resumed"));
  EXPECT_EQ(tokens("resumed"), tokens("unbroken"));

  // The same by /load, from a conversation that went another way.
  second.enter("/reset");
  second.enter("Something else");
  EXPECT_THAT(second.enter("/load " + file("stopped")), HasSubstr("the last text was: It was"));
  second.enter("/undo");
  second.enter("/set ignore-eos off");
  second.enter("And then");
  second.enter("So they");
  second.enter("/save " + file("resumed"));
  EXPECT_EQ(tokens("resumed"), tokens("unbroken"));
  EXPECT_THAT(output_of({"inspect", file("resumed")}),
              AllOf(HasSubstr("conversation"), HasSubstr("tale-10m")));
  second.send("/exit\r");
  EXPECT_EQ(second.finish(), 0);
}

TEST_F(ChatTerminalTest, CtrlCClearsTheLineAndAtAnEmptyPromptAsksOnce) {
  Terminal terminal(arguments(), environment());
  terminal.until(Terminal::kReady);
  terminal.send("half a thought");
  terminal.until("thought");
  terminal.send(kCtrlC);
  EXPECT_THAT(terminal.until(Terminal::kReady), AllOf(HasSubstr("^C"), Not(HasSubstr("leaves"))));
  EXPECT_THAT(terminal.enter("/stats"), HasSubstr("0 on branch main")) << "nothing was said";
  terminal.send(kCtrlC);
  EXPECT_THAT(terminal.until(Terminal::kReady), HasSubstr("Ctrl-C once more leaves"));
  terminal.enter("/stats");
  terminal.send(kCtrlC);
  EXPECT_THAT(terminal.until(Terminal::kReady), HasSubstr("Ctrl-C once more leaves"));
  terminal.send(kCtrlC);
  EXPECT_EQ(terminal.finish(), 0);
  EXPECT_TRUE(terminal.is_cooked());
}

TEST_F(ChatTerminalTest, ASignalToEndLeavesTheTerminalAsItWas) {
  Terminal terminal(arguments(), environment());
  terminal.until(Terminal::kReady);
  terminal.send("half");
  terminal.until("half");
  ::kill(terminal.pid(), SIGTERM);
  EXPECT_EQ(terminal.finish(), 0);
  EXPECT_TRUE(terminal.is_cooked());
}

TEST_F(ChatTerminalTest, LinesGoOnAfterABackslashAndInAPaste) {
  Terminal terminal(arguments({"--ignore-eos"}), environment());
  terminal.until(Terminal::kReady);
  terminal.enter("Once upon\\");
  terminal.enter("a time");
  terminal.send("So \033[200~a king\rand a \"queen\"\rand\r\033[201~");
  terminal.until("[paste 1: 4 lines, 25 bytes]");
  terminal.enter(" met");
  terminal.send("\033[200~short\033[201~");
  terminal.until("short");
  terminal.enter(" caf\u00e9 \U0001F40E");
  terminal.enter("/save " + file("talk"));
  const nlohmann::json turns = conversation("talk")["turns"];
  EXPECT_EQ(turns[0]["user"], "Once upon\na time");
  EXPECT_EQ(turns[1]["user"], "So a king\nand a \"queen\"\nand\n met");
  EXPECT_EQ(turns[2]["user"], "short caf\u00e9 \U0001F40E");
}

TEST_F(ChatTerminalTest, AMegabyteOfPasteIsReadAndCanBeStopped) {
  Terminal terminal(arguments(), environment());
  terminal.until(Terminal::kReady);
  std::string flood;
  while (flood.size() < 1'000'000) flood += "and they went on\n";
  terminal.send("\033[200~" + flood + "\033[201~");
  terminal.until("[paste 1: 58825 lines, 1000008 bytes]");
  terminal.send("\r");
  terminal.until("Ctrl-C stops]");
  terminal.send(kCtrlC);
  EXPECT_THAT(terminal.until(Terminal::kReady), HasSubstr("nothing was said"));
  EXPECT_GT(terminal.enter("Once upon a time").size(), 20u);

  // A terminal that does not mark its pastes.
  terminal.send(std::string(100'000, 'x'));
  terminal.until("bytes]");
  terminal.send(kCtrlC);
  terminal.until(Terminal::kReady);
  EXPECT_THAT(terminal.enter("/stats"), HasSubstr("1 on branch main"));
  EXPECT_LT(terminal.output().size(), 20'000u) << "the flood itself is not shown";
}

TEST_F(ChatTerminalTest, WhatIsNoUtf8GetsOneClearLine) {
  Terminal terminal(arguments(), environment());
  terminal.until(Terminal::kReady);
  EXPECT_THAT(terminal.enter("caf\xE9!"), HasSubstr("no UTF-8; nothing was said"));
  EXPECT_THAT(terminal.enter("\033[200~caf\xE9\n!\033[201~"), HasSubstr("no UTF-8"));
  EXPECT_THAT(terminal.enter("/stats"), HasSubstr("0 on branch main"));
}

TEST_F(ChatTerminalTest, RemembersLinesInTheStateFolder) {
  {
    Terminal terminal(arguments({"--ignore-eos"}), environment());
    terminal.until(Terminal::kReady);
    terminal.enter("Once upon a caf\u00e9");
    terminal.send(kCtrlD);
    EXPECT_EQ(terminal.finish(), 0);
  }
  EXPECT_THAT(folder_.names(), testing::ElementsAre("gsa"));
  Terminal terminal(arguments({"--ignore-eos"}), environment());
  terminal.until(Terminal::kReady);
  terminal.send("\033[A");
  terminal.until("caf\u00e9");
  terminal.enter("!");
  terminal.enter("/save " + file("talk"));
  EXPECT_EQ(conversation("talk")["turns"][0]["user"], "Once upon a caf\u00e9!");
}

TEST_F(ChatTerminalTest, ColoursOnlyWhereTheyAreWanted) {
  const auto shown = [&](const Terminal::Environment& more) {
    Terminal terminal(arguments(), environment(more));
    terminal.until(Terminal::kReady);
    terminal.enter("/nope");
    return terminal.output();
  };
  EXPECT_THAT(shown({}), HasSubstr("\033[31merror"));
  EXPECT_THAT(shown({{"NO_COLOR", "1"}}),
              AllOf(HasSubstr("error"), Not(HasSubstr("\033[31m")), Not(HasSubstr("\033[2m"))));

  Terminal dumb(arguments(), environment({{"TERM", "dumb"}}));
  dumb.until("> ");
  dumb.send("Once upon\\\na time\n");
  dumb.until("> ");
  dumb.send(kCtrlC);
  dumb.until("once more leaves");
  dumb.send(kCtrlD);
  EXPECT_EQ(dumb.finish(), 0);
  EXPECT_THAT(dumb.output(), Not(HasSubstr("\033")));
}

TEST_F(ChatTerminalTest, LinesThatComeTogetherAreOneTextWherePastesAreNotMarked) {
  Terminal dumb(arguments({"--ignore-eos"}), environment({{"TERM", "dumb"}}));
  dumb.until("> ");
  dumb.send("Once upon\na time\n");
  dumb.until("> ");
  dumb.send("/save " + file("talk") + "\n");
  dumb.until("bytes]");
  EXPECT_EQ(conversation("talk")["turns"][0]["user"], "Once upon\na time");
}

TEST_F(ChatTerminalTest, FitsANarrowTerminal) {
  Terminal terminal(arguments(), environment({{"NO_COLOR", "1"}}), 50);
  std::string shown = terminal.until(Terminal::kReady);
  shown += terminal.enter("/help");
  shown += terminal.enter("/help system");
  shown += terminal.enter("/set");
  std::istringstream lines(shown);
  for (std::string line; std::getline(lines, line);) {
    if (line.find('\033') != line.npos) continue;
    EXPECT_LE(line.size(), 51u) << line;
  }
  EXPECT_THAT(shown, HasSubstr("as if the text had"));
}

}  // namespace
}  // namespace gsa::test
