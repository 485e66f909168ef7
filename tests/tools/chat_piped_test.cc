// `gsa chat` without a terminal: a turn a line, answers on standard output and nothing else.

#include <algorithm>
#include <span>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/program.h"
#include "tests/support/tale.h"
#include "tests/support/temporary_folder.h"

namespace gsa::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> chat(std::vector<std::string> more = {}) {
  std::vector<std::string> all = {"chat",   "-m", tale(), "--threads", "1",
                                  "--seed", "7",  "-n",   "16"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find('\n', at);
    lines.push_back(text.substr(at, end - at));
    at = end == text.npos ? end : end + 1;
  }
  return lines;
}

TEST(ChatPiped, AnswersEachLineInPlainText) {
  // No newline in an answer, so that the lines can be counted.
  const Outcome outcome = run(chat({"--logit-bias", "13-100"}),
                              "Once upon a time\n\nThe king said\n/retry 7\n/retry\n");
  EXPECT_EQ(outcome.status, 0);
  const std::vector<std::string> lines = lines_of(outcome.out);
  ASSERT_EQ(lines.size(), 4u) << outcome.out;
  EXPECT_EQ(lines[2], lines[1]) << "the same seed";
  EXPECT_NE(lines[3], lines[1]);
  EXPECT_THAT(outcome.out, Not(HasSubstr("\033")));
  EXPECT_THAT(outcome.err, HasSubstr("story teller"));
}

TEST(ChatPiped, TheFirstAnswerIsThatOfGenerate) {
  const std::string generated =
      output_of({"generate", "-m", tale(), "--seed", "7", "-n", "16", "-p", "Once upon a time"});
  EXPECT_EQ(output_of(chat(), "Once upon a time"),
            generated.substr(generated.find_first_not_of(' ')));
}

TEST(ChatPiped, CommandsAndSettingsWorkInAPipeToo) {
  const Outcome outcome = run(chat({"--system", "A tale of the sea."}),
                              "/set temperature 0\nOnce upon\\\na time\n/fork b\nThe king\n"
                              "/switch main\nThe king\n/undo\n//slash\n/system\n/stats\n");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("temp                0"), HasSubstr("2 on branch main"),
                                 HasSubstr("1.25 MiB, at any length")));
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("branches: b, main; this is b"),
                                 HasSubstr("the last text was: Once upon..."),
                                 HasSubstr("system: A tale of the sea.")));
}

TEST(ChatPiped, WhatCannotBeDoneGetsOneLineAndTheExitStatus) {
  const Outcome outcome =
      run(chat(),
          "/nope\n/undo\n/retry\n/edit\n/save\n/load /absent\n/fork\n/switch x\n"
          "/set temp hot\n/set warmth 1\n/undo x\n/help nope\ncaf\xE9\n"
          "Once upon a time\n/undo 2\n/fork main\n");
  EXPECT_EQ(outcome.status, 1);
  std::vector<std::string> errors;
  for (const std::string& line : lines_of(outcome.err)) {
    if (line.starts_with("gsa: error: ")) errors.push_back(line.substr(12));
  }
  ASSERT_EQ(errors.size(), 15u) << outcome.err;
  EXPECT_THAT(errors[0], HasSubstr("/nope: no such command"));
  EXPECT_THAT(errors[1], HasSubstr("there are 0 turns"));
  EXPECT_THAT(errors[2], HasSubstr("nothing has been said yet"));
  EXPECT_THAT(errors[3], HasSubstr("/edit: expected the text"));
  EXPECT_THAT(errors[4], HasSubstr("/save: expected the name"));
  EXPECT_THAT(errors[5], HasSubstr("/absent"));
  EXPECT_THAT(errors[6], HasSubstr("a branch needs a name"));
  EXPECT_THAT(errors[7], HasSubstr("no branch x"));
  EXPECT_THAT(errors[8], HasSubstr("temp: expected a number"));
  EXPECT_THAT(errors[9], HasSubstr("warmth: no such setting; there are temp"));
  EXPECT_THAT(errors[10], HasSubstr("/undo x: expected a whole number"));
  EXPECT_THAT(errors[11], HasSubstr("/nope: no such command"));
  EXPECT_THAT(errors[12], HasSubstr("no UTF-8"));
  EXPECT_THAT(errors[13], HasSubstr("there are 1 turns, so 2"));
  EXPECT_THAT(errors[14], HasSubstr("there is a branch main already"));
  EXPECT_EQ(lines_of(outcome.out).size(), 1u) << "the turn between the mistakes is answered";
}

TEST(ChatPiped, FlagsGoBeforeTheSettingsOfALoadedFile) {
  const TemporaryFolder folder;
  const std::string file = (folder / "talk").string();
  output_of(chat({"--temp", "0.5", "--top-k", "3"}), "Once upon a time\n/save " + file + "\n");
  const std::string shown = output_of({"chat", "-m", tale(), "--load", file, "--temp", "0.25"},
                                      "/set temp\n/set top-k\n");
  EXPECT_THAT(
      shown, AllOf(HasSubstr("0.25"), Not(HasSubstr("0.5 ")), HasSubstr("top-k               3 ")));
}

TEST(ChatPiped, HasHelpForEveryCommand) {
  const std::string all = output_of(chat(), "/help\n");
  for (const char* name : {"help", "undo", "retry", "edit", "save", "load", "fork", "switch",
                           "system", "set", "stats", "reset", "exit"}) {
    EXPECT_THAT(all, HasSubstr(std::string("/") + name + " "));
    EXPECT_THAT(output_of(chat(), std::string("/help ") + name + "\n"),
                testing::StartsWith(std::string("/") + name));
  }
}

TEST(ChatPiped, AModelWithAChatTemplateAnswersInIt) {
  const TemporaryFolder folder;
  const std::string model = (folder / "chatty.safetensors").string();
  const std::string file = (folder / "talk").string();
  write_tale_with_template(
      "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] + eos_token }}"
      "{% endfor %}<assistant>",
      model);
  const Outcome outcome =
      run({"chat", "-m", model, "--seed", "7", "-n", "5", "--system", "Be brief."},
          "Who is there?\n\n</s>\n/save " + file + "\n/stats\n");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, Not(HasSubstr("story teller")));
  EXPECT_THAT(outcome.out, HasSubstr("2 on branch main"));
  const SafetensorsFile saved = SafetensorsFile::open(file);
  const TensorView& view = saved.tensor("tokens");
  const std::span<const int32_t> tokens(static_cast<const int32_t*>(view.data), view.elements());
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 1), 1);
  // Of the system text, of two texts of the user and of the first answer.
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 2), 4);
  const std::string text = tale_model()->tokenizer->decode({tokens.begin(), tokens.end()});
  EXPECT_THAT(text, testing::StartsWith("<system>Be brief.<user>Who is there?<assistant>"));
  EXPECT_THAT(text, HasSubstr("<user></s><assistant>"));

  // A template is no part of what a state depends on.
  EXPECT_EQ(run({"chat", "-m", tale(), "--load", file, "-n", "5"}, "And then\n").status, 0);
}

TEST(ChatPiped, LeavesAtExitAndReadsNoFurther) {
  const Outcome outcome = run(chat(), "/exit\nOnce upon a time\n");
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "");
}

}  // namespace
}  // namespace gsa::test
