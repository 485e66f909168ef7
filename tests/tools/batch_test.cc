// gsa batch as a user runs it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <algorithm>

#include <map>
#include <thread>

#include <nlohmann/json.hpp>

#include "tests/support/program.h"

namespace gsa::test {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;
using namespace std::chrono_literals;

class GsaBatch : public testing::Test {
 protected:
  std::vector<std::string> command(const std::string& out = "out") const {
    return {"batch",     "-m", tale(),         "--device",   "cpu",
            "--threads", "1",  folder_ / "in", folder_ / out};
  }

  Outcome run_batch(const std::string& lines, const std::string& out = "out") {
    write_bytes(folder_ / "in", lines);
    return run(command(out));
  }

  // The results in the file, by id or line; fails for a line that is no result or comes twice.
  std::map<std::string, json> results(const std::string& out = "out") const {
    std::map<std::string, json> all;
    std::istringstream in(read_bytes(folder_ / out));
    for (std::string line; std::getline(in, line);) {
      EXPECT_FALSE(in.eof()) << "the last line has no end";
      const json result = json::parse(line);
      const std::string key =
          result.contains("id") ? result["id"].dump() : "line " + result.at("line").dump();
      EXPECT_TRUE(all.emplace(key, result).second) << key << " twice";
    }
    return all;
  }

  TemporaryFolder folder_;
};

std::string request(const json& id, int max_tokens, const std::string& prompt = "Once") {
  return json({{"id", id}, {"prompt", prompt}, {"max_tokens", max_tokens}, {"seed", 3}}).dump() +
         "\n";
}

TEST_F(GsaBatch, WritesOneResultForEachLineInOpenAIsShape) {
  const Outcome outcome = run_batch(
      R"({"id":"a","prompt":"There was a king","max_tokens":4,"temperature":0,"n":2,"logprobs":2})"
      "\n\n  \r\n"
      R"({"prompt":[1,50,60],"max_tokens":3,"seed":1,"stop":null,"prompt_logprobs":true})"
      "\r\n");
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, HasSubstr("2 requests done, 0 failed, 0 skipped"));
  const auto all = results();
  ASSERT_EQ(all.size(), 2u);
  const json& a = all.at("\"a\"");
  ASSERT_EQ(a.at("choices").size(), 2u);
  for (int i = 0; i < 2; ++i) {
    const json& choice = a["choices"][i];
    EXPECT_EQ(choice.at("index"), i);
    EXPECT_FALSE(choice.at("text").get<std::string>().empty());
    EXPECT_EQ(choice.at("finish_reason"), "length");
    ASSERT_EQ(choice.at("logprobs").size(), 4u);
    EXPECT_EQ(choice["logprobs"][0].at("top_logprobs").size(), 2u);
  }
  EXPECT_EQ(a.at("usage").at("completion_tokens"), 8);
  // Line 4 has no id: its number stands for it.
  const json& second = all.at("4");
  EXPECT_TRUE(second.at("choices")[0].at("logprobs").is_null());
  EXPECT_EQ(second.at("prompt_logprobs").size(), 2u);
  EXPECT_EQ(second.at("usage"), json({{"prompt_tokens", 3}, {"completion_tokens", 3}}));
}

TEST_F(GsaBatch, BlamesTheFieldOnItsLineAndGoesOn) {
  const std::pair<const char*, const char*> bad[] = {
      {R"("prompt":7)", "prompt"},
      {R"("prompt":[1,-1])", "prompt"},
      {R"("prompt":[1,"x"])", "prompt"},
      {R"("prompt":[])", "prompt"},
      {R"("max_tokens":1)", "prompt"},
      {R"("prompt":null)", "prompt"},
      {R"("prompt":"x","max_tokens":"many")", "max_tokens"},
      {R"("prompt":"x","max_tokens":1.5)", "max_tokens"},
      {R"("prompt":"x","max_tokens":-1)", "max_tokens"},
      {R"("prompt":"x","max_tokens":99999999999999999999)", "max_tokens"},
      {R"("prompt":"x","min_tokens":true)", "min_tokens"},
      {R"("prompt":"x","temperature":"hot")", "temperature"},
      {R"("prompt":"x","temperature":-1)", "temperature"},
      {R"("prompt":"x","top_k":4294967296)", "top_k"},
      {R"("prompt":"x","top_p":0)", "top_p"},
      {R"("prompt":"x","min_p":2)", "min_p"},
      {R"("prompt":"x","typical_p":[])", "typical_p"},
      {R"("prompt":"x","seed":-1)", "seed"},
      {R"("prompt":"x","stop":[1])", "stop"},
      {R"("prompt":"x","stop":{})", "stop"},
      {R"("prompt":"x","stop_token_ids":3)", "stop_token_ids"},
      {R"("prompt":"x","n":0)", "n"},
      {R"("prompt":"x","n":1000)", "n"},
      {R"("prompt":"x","logprobs":true)", "logprobs"},
      {R"("prompt":"x","logit_bias":[1])", "logit_bias"},
      {R"("prompt":"x","logit_bias":{"x":1})", "logit_bias"},
      {R"("prompt":"x","logit_bias":{"5":"y"})", "logit_bias"},
      {R"("prompt":"x","logit_bias":{"5":"y"}})", ""},
      {R"("prompt":"x","logit_bias":{"5000":1})", "logit_bias"},
      {R"("prompt":"x","presence_penalty":"y")", "presence_penalty"},
      {R"("prompt":"x","frequency_penalty":false)", "frequency_penalty"},
      {R"("prompt":"x","repetition_penalty":0)", "repetition_penalty"},
      {R"("prompt":"x","ignore_eos":1)", "ignore_eos"},
      {R"("prompt":"x","prompt_logprobs":0)", "prompt_logprobs"},
      {R"("prompt":"x","priority":"high")", "priority"},
      {R"("prompt":"x","tempratur":1)", "tempratur"},
  };
  std::string lines = request("first", 2);
  for (size_t i = 0; i < std::size(bad); ++i) {
    lines += "{\"id\":" + std::to_string(1000 + i) + "," + bad[i].first + "}\n";
  }
  lines += request("last", 2);
  const Outcome outcome = run_batch(lines);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err,
              HasSubstr("2 requests done, " + std::to_string(std::size(bad)) + " failed"));
  const auto all = results();
  for (size_t i = 0; i < std::size(bad); ++i) {
    SCOPED_TRACE(bad[i].first);
    const bool no_json = *bad[i].second == '\0';
    const auto it = all.find(no_json ? "line " + std::to_string(i + 2) : std::to_string(1000 + i));
    ASSERT_NE(it, all.end());
    const json& error = it->second.at("error");
    EXPECT_FALSE(error.at("message").get<std::string>().empty());
    EXPECT_EQ(error.at("param"), no_json ? json() : json(bad[i].second));
    EXPECT_FALSE(it->second.contains("choices"));
  }
  EXPECT_TRUE(all.at("\"first\"").contains("choices"));
  EXPECT_TRUE(all.at("\"last\"").contains("choices"));
}

TEST_F(GsaBatch, NamesTheLineThatIsNoJsonOrNoObject) {
  const Outcome outcome = run_batch("nonsense\n" + request("a", 1) + "[1,2]\n{\"id\":1\n");
  EXPECT_EQ(outcome.status, 0);
  const auto all = results();
  ASSERT_EQ(all.size(), 4u);
  EXPECT_THAT(all.at("line 1").at("error").at("message"), HasSubstr("no JSON"));
  EXPECT_THAT(all.at("line 4").at("error").at("message"), HasSubstr("no JSON"));
  EXPECT_THAT(all.at("3").at("error").at("message"), HasSubstr("object"));
}

TEST_F(GsaBatch, RefusesAnIdThatAnEarlierLineHas) {
  const std::string lines =
      request("a", 2, "One") + request("a", 2, "Two") + request(json(), 2) + request(3, 2);
  EXPECT_EQ(run_batch(lines).status, 0);
  const auto all = results();
  ASSERT_EQ(all.size(), 4u);
  EXPECT_TRUE(all.at("\"a\"").contains("choices"));
  EXPECT_TRUE(all.at("3").contains("choices")) << "the third line, which has no id";
  for (const char* key : {"line 2", "line 4"}) {
    EXPECT_EQ(all.at(key).at("error").at("param"), "id");
  }
  const std::string before = read_bytes(folder_ / "out");
  EXPECT_THAT(run_batch(lines).err, HasSubstr("4 skipped"));
  EXPECT_EQ(read_bytes(folder_ / "out"), before);
}

TEST_F(GsaBatch, GivesTheTextThatGenerateGives) {
  std::string lines;
  const char* prompts[] = {"Once upon a time", "The sea", "She said that", "A dragon"};
  for (int i = 0; i < 12; ++i) {
    lines += json({{"id", i},
                   {"prompt", prompts[i % 4]},
                   {"max_tokens", 5 + i},
                   {"seed", i},
                   {"temperature", 0.8},
                   {"top_k", 40},
                   {"top_p", 0.95},
                   {"min_p", 0.05}})
                 .dump() +
             "\n";
  }
  ASSERT_EQ(run_batch(lines).status, 0);
  const auto all = results();
  for (int i : {0, 5, 11}) {
    const std::string alone =
        output_of({"generate", "-m", tale(), "--device", "cpu", "--threads", "1", "-p",
                   prompts[i % 4], "-n", std::to_string(5 + i), "--seed", std::to_string(i)});
    EXPECT_EQ(all.at(std::to_string(i)).at("choices")[0].at("text").get<std::string>() + "\n",
              alone);
  }
}

TEST_F(GsaBatch, LosesAndRepeatsNothingWhenItIsKilledAgainAndAgain) {
  constexpr int kRequests = 120;
  std::string lines;
  for (int i = 0; i < kRequests; ++i)
    lines += request(i, 12, "The king of story " + std::to_string(i));
  ASSERT_EQ(run_batch(lines, "whole").status, 0);
  int kills = 0;
  size_t size = 0;
  for (int attempt = 0; attempt < 6; ++attempt) {
    Program program(command());
    // Until it has written some more.
    for (int i = 0; i < 20000; ++i) {
      std::error_code missing;
      const auto now = std::filesystem::file_size(folder_ / "out", missing);
      if (!missing && now > size + 1500) break;
      std::this_thread::sleep_for(1ms);
    }
    program.send(SIGKILL);
    kills += program.finish().signal == SIGKILL;
    size = std::filesystem::file_size(folder_ / "out");
    // A machine that goes down may leave half a line as well.
    std::filesystem::resize_file(folder_ / "out", size - std::min<uintmax_t>(size, 7 * attempt));
  }
  EXPECT_GE(kills, 2);
  EXPECT_LT(read_bytes(folder_ / "out").size(), read_bytes(folder_ / "whole").size());
  const Outcome last = run(command());
  EXPECT_EQ(last.status, 0) << last.err;
  EXPECT_THAT(last.err, testing::Not(HasSubstr(" 0 skipped")));
  EXPECT_EQ(results(), results("whole"));
  EXPECT_EQ(results().size(), static_cast<size_t>(kRequests));
}

TEST_F(GsaBatch, StopsAtCtrlCAndGoesOnWhereItStopped) {
  std::string lines;
  for (int i = 0; i < 60; ++i) lines += request(i, i < 4 ? 1 : 30);
  write_bytes(folder_ / "in", lines);
  Program program(command());
  for (int i = 0; i < 5000; ++i) {
    std::error_code missing;
    if (std::filesystem::file_size(folder_ / "out", missing) > 10 && !missing) break;
    std::this_thread::sleep_for(1ms);
  }
  program.send(SIGINT);
  const Outcome outcome = program.finish();
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("interrupted"), HasSubstr("requests done")));
  const size_t before = results().size();
  EXPECT_GT(before, 0u);
  EXPECT_LT(before, 60u);
  for (const auto& [id, result] : results()) {
    EXPECT_EQ(result.at("choices")[0].at("finish_reason"), "length") << "half a text in the file";
  }
  EXPECT_EQ(run(command()).status, 0);
  EXPECT_EQ(results().size(), 60u);
}

TEST_F(GsaBatch, DrawsItsProgressOnATerminalAlone) {
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += request(i, 16);
  write_bytes(folder_ / "in", lines);
  std::vector<std::string> arguments = command();
  arguments.insert(arguments.begin(), GSA_PROGRAM);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  int terminal = -1;
  const pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  ASSERT_GE(child, 0);
  if (child == 0) {
    execv(GSA_PROGRAM, argv.data());
    _exit(127);
  }
  std::string shown;
  char buffer[4096];
  for (ssize_t n; (n = read(terminal, buffer, sizeof(buffer))) > 0;) shown.append(buffer, n);
  close(terminal);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(shown,
              testing::ContainsRegex("[0-9]+ of 200 requests, [0-9]+ tokens/s, [0-9]+ s left"));
  EXPECT_THAT(shown, HasSubstr("200 requests done, 0 failed"));
  write_bytes(folder_ / "in", request(1, 30));
  EXPECT_THAT(run(command("other")).err, testing::Not(HasSubstr("left")));
}

TEST_F(GsaBatch, LeavesAFileAloneThatHoldsSomethingElse) {
  for (const char* content : {"my notes\n", "{\"name\":\"x\"}\n", "[1]\n"}) {
    write_bytes(folder_ / "out", content);
    const Outcome outcome = run_batch(request(1, 1));
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.err, AllOf(HasSubstr("/out: line 1"), HasSubstr("another output file")));
    EXPECT_EQ(read_bytes(folder_ / "out"), content);
  }
}

TEST_F(GsaBatch, RefusesAnOutputThatAnotherRunWrites) {
  write_bytes(folder_ / "in", request(1, 100000));
  Program first(command());
  while (!std::filesystem::exists(folder_ / "out")) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(50ms);
  EXPECT_THAT(run(command()).err, HasSubstr("another run is writing"));
}

TEST_F(GsaBatch, NamesTheFileThatCannotBeReadOrWritten) {
  EXPECT_THAT(run(command()).err, AllOf(HasSubstr("/in: cannot be read"), HasSubstr("gsa: error")));
  write_bytes(folder_ / "in", request(1, 1));
  const Outcome outcome = run(command("no/such/folder"));
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("no/such/folder: cannot be written"));
}

TEST_F(GsaBatch, StopsWhenTheOutputCannotGrow) {
  std::string lines;
  for (int i = 0; i < 200; ++i) lines += request(i, 1);
  write_bytes(folder_ / "in", lines);
  // A limit on the size of files, which the program inherits, stands for a full disk.
  struct rlimit before {};
  getrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small { 4096, before.rlim_max };
  setrlimit(RLIMIT_FSIZE, &small);
  const Outcome outcome = run(command());
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_DFL);
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("/out: cannot be written"));
  EXPECT_LE(std::filesystem::file_size(folder_ / "out"), 4096u);
  EXPECT_EQ(run(command()).status, 0) << "goes on when there is room";
  EXPECT_EQ(results().size(), 200u);
}

}  // namespace
}  // namespace gsa::test
