#include "engine/request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/engine_fixture.h"

namespace gsa {
namespace {

using testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// The field that is blamed, "" if none.
std::string blamed(const std::function<void(Request&)>& change) {
  Request request = test::make_request({1, 2, 3}, 4);
  change(request);
  try {
    check_request(request, test::tiny_config(), /*capacity=*/4);
  } catch (const RequestError& error) {
    EXPECT_THAT(error.what(), HasSubstr(error.param()));
    EXPECT_THAT(error.what(), HasSubstr("expected"));
    return error.param();
  }
  return "";
}

TEST(CheckRequest, AcceptsTheLimitsOfEveryField) {
  EXPECT_EQ(blamed([](Request&) {}), "");
  EXPECT_EQ(blamed([](Request& r) {
              r.sampling = {.temperature = 0, .top_k = 0, .top_p = 1e-12, .min_p = 1};
              r.sampling.typical_p = 1e-12;
              r.sampling.repetition_penalty = 1e-3;
              r.sampling.logit_bias = {{0, -INFINITY}, {1023, 100}};
              r.sampling.logprobs = 1024;
              r.repeat_last_n = 0;
              r.max_tokens = 0;
              r.n = 4;
              r.prompt = {0, 1023};
              r.stop = {"", "x"};
            }),
            "");
}

TEST(CheckRequest, NamesTheFieldThatIsOutOfRange) {
  const std::pair<const char*, std::function<void(Request&)>> cases[] = {
      {"temperature", [](Request& r) { r.sampling.temperature = -0.1; }},
      {"temperature", [](Request& r) { r.sampling.temperature = kNan; }},
      {"temperature", [](Request& r) { r.sampling.temperature = kInfinity; }},
      {"top_k", [](Request& r) { r.sampling.top_k = -1; }},
      {"top_p", [](Request& r) { r.sampling.top_p = 0; }},
      {"top_p", [](Request& r) { r.sampling.top_p = 1.01; }},
      {"top_p", [](Request& r) { r.sampling.top_p = kNan; }},
      {"min_p", [](Request& r) { r.sampling.min_p = -0.1; }},
      {"min_p", [](Request& r) { r.sampling.min_p = 1.1; }},
      {"typical_p", [](Request& r) { r.sampling.typical_p = 0; }},
      {"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = 0; }},
      {"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = kInfinity; }},
      {"presence_penalty", [](Request& r) { r.sampling.presence_penalty = kNan; }},
      {"frequency_penalty", [](Request& r) { r.sampling.frequency_penalty = kInfinity; }},
      {"logprobs", [](Request& r) { r.sampling.logprobs = -1; }},
      {"logprobs", [](Request& r) { r.sampling.logprobs = 1025; }},
      {"logit_bias",
       [](Request& r) {
         r.sampling.logit_bias = {{1024, 1}};
       }},
      {"logit_bias",
       [](Request& r) {
         r.sampling.logit_bias = {{-1, 1}};
       }},
      {"logit_bias",
       [](Request& r) {
         r.sampling.logit_bias = {{1, NAN}};
       }},
      {"repeat_last_n", [](Request& r) { r.repeat_last_n = -2; }},
      {"max_tokens", [](Request& r) { r.max_tokens = -1; }},
      {"min_tokens", [](Request& r) { r.min_tokens = -1; }},
      {"n", [](Request& r) { r.n = 0; }},
      {"n", [](Request& r) { r.n = 5; }},
      {"prompt", [](Request& r) { r.prompt.clear(); }},
      {"prompt", [](Request& r) { r.prompt[1] = 1024; }},
      {"prompt", [](Request& r) { r.prompt[1] = -1; }},
  };
  for (const auto& [field, change] : cases) EXPECT_EQ(blamed(change), field);
}

TEST(CheckRequest, RefusesASnapshotThatIsNotOfThisModel) {
  const GsaConfig config = test::tiny_config();
  Snapshot good;
  good.tokens = {1, 2};
  const size_t floats = config.state_bytes() / sizeof(float);
  good.state = std::vector<float>(floats);
  good.logits = std::vector<float>(config.vocab_size);
  const auto from = [&](const std::function<void(Snapshot&)>& change) {
    Snapshot snapshot = good;
    change(snapshot);
    return blamed([&](Request& r) {
      r.prompt.clear();
      r.from = std::make_shared<Snapshot>(snapshot);
    });
  };
  EXPECT_EQ(from([](Snapshot&) {}), "") << "an empty prompt is fine after a snapshot";
  EXPECT_EQ(from([&](Snapshot& s) { s.state = std::vector<float>(floats - 1); }), "from");
  EXPECT_EQ(from([&](Snapshot& s) { s.logits = std::vector<float>(config.vocab_size + 1); }),
            "from");
  EXPECT_EQ(from([](Snapshot& s) { s.tokens.clear(); }), "from");
  EXPECT_EQ(from([](Snapshot& s) { s.tokens[0] = 1024; }), "from");
}

TEST(FinishReason, HasTheNamesOfOpenAIsApi) {
  EXPECT_EQ(finish_reason_name(FinishReason::kStop), "stop");
  EXPECT_EQ(finish_reason_name(FinishReason::kLength), "length");
  EXPECT_EQ(finish_reason_name(FinishReason::kCancelled), "cancelled");
  EXPECT_EQ(finish_reason_name(FinishReason::kDeadline), "deadline");
  EXPECT_EQ(finish_reason_name(FinishReason::kError), "error");
}

}  // namespace
}  // namespace gsa
