// Every fixture goes the whole way as a user's model does: convert, score, generate. The expected
// values are float64 arithmetic over the stored weights (tests/data/fixtures/README.md).

#include <gtest/gtest.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "tests/support/hf_source.h"
#include "tests/support/model_fixture.h"
#include "tests/support/program.h"

namespace gsa::test {
namespace {

// The bound the project sets itself; float32 sums of a few hundred products stay well below it.
constexpr double kTolerance = 2e-5;
// Logits are a few units large: the same relative error, absolute.
constexpr double kLogprobTolerance = 1e-4;

std::span<const float> floats(const SafetensorsFile& file, const std::string& name) {
  const TensorView& tensor = file.tensor(name);
  EXPECT_EQ(tensor.dtype, DType::kF32) << name;
  return {static_cast<const float*>(tensor.data), static_cast<size_t>(tensor.elements())};
}

std::vector<int32_t> ids(const SafetensorsFile& file, const std::string& name) {
  const TensorView& tensor = file.tensor(name);
  EXPECT_EQ(tensor.dtype, DType::kI32) << name;
  const auto* data = static_cast<const int32_t*>(tensor.data);
  return {data, data + tensor.elements()};
}

std::string joined(std::span<const int32_t> tokens) {
  std::string text;
  for (int32_t token : tokens) text += std::to_string(token) + ' ';
  return text;
}

class Fixture : public testing::TestWithParam<const char*> {
 protected:
  Fixture() : golden_(SafetensorsFile::open(fixture(GetParam()) / "expected/golden.safetensors")) {
    output_of({"convert", fixture(GetParam()), model_});
  }

  TemporaryFolder folder_;
  std::string model_ = folder_ / "model.safetensors";
  SafetensorsFile golden_;
};

TEST_P(Fixture, GivesTheExpectedLogitsAndMemories) {
  const std::vector<int32_t> tokens = ids(golden_, "tokens");
  ASSERT_EQ(tokens.size(), 200u);
  const std::string dump = folder_ / "dump.safetensors";
  output_of({"score", "-m", model_, "--tokens", joined(tokens), "--dump", dump});
  const SafetensorsFile found = SafetensorsFile::open(dump);
  EXPECT_EQ(ids(found, "tokens"), tokens);
  double logits = 0, memories = 0;
  int layers = 0;
  for (const auto& [name, expected] : golden_.tensors()) {
    const bool memory = name.starts_with("hk.") || name.starts_with("hv.");
    if (name != "logits" && !memory) continue;
    ASSERT_EQ(shape_string(found.tensor(name)), shape_string(expected)) << name;
    const double error = relative_error(floats(found, name), floats(golden_, name));
    EXPECT_LE(error, kTolerance) << name;
    double& worst = memory ? memories : logits;
    worst = std::max(worst, error);
    layers += name.starts_with("hk.");
  }
  EXPECT_GE(layers, 2);
  std::printf("%-8s %d layers: relative error of the logits %.1e, of the memories %.1e\n",
              GetParam(), layers, logits, memories);
}

TEST_P(Fixture, ContinuesWithTheExpectedTokens) {
  const std::vector<int32_t> tokens = ids(golden_, "tokens");
  const std::vector<int32_t> expected = ids(golden_, "greedy");
  const size_t length = static_cast<size_t>(ids(golden_, "greedy_prompt_len").at(0));
  ASSERT_LE(length, tokens.size());
  const std::string prompt = joined(std::span(tokens).first(length));
  const auto out = nlohmann::json::parse(
      output_of({"generate", "-m", model_, "--tokens", prompt, "-n",
                 std::to_string(expected.size()), "--temp", "0", "--ignore-eos", "--json"}));
  EXPECT_EQ(out.at("tokens"), expected);
  EXPECT_EQ(out.at("finish_reason"), "length");
}

TEST_P(Fixture, ScoresTokensAsItsLogitsSay) {
  const std::vector<int32_t> tokens = ids(golden_, "tokens");
  const auto out = nlohmann::json::parse(
      output_of({"score", "-m", model_, "--tokens", joined(tokens), "--json"}));
  const std::span<const float> logits = floats(golden_, "logits");
  const size_t N = logits.size() / tokens.size();
  ASSERT_EQ(out.at("logprobs").size(), tokens.size());
  EXPECT_TRUE(out.at("logprobs")[0].is_null());
  for (size_t t = 1; t < tokens.size(); ++t) {
    const std::span<const float> row = logits.subspan((t - 1) * N, N);
    double sum = 0;
    for (float logit : row) sum += std::exp(static_cast<double>(logit));
    EXPECT_NEAR(out.at("logprobs")[t].get<double>(), row[tokens[t]] - std::log(sum),
                kLogprobTolerance)
        << t;
  }
}

// With small weights the expected values are what the model would say without them: the error is
// that of the weights, 0.5% and 8%, about three times over in models of random matrices, where no
// training made the layers forgiving. The library's own bf16 run is as far off as q8.
TEST_P(Fixture, StaysNearTheExpectedLogitsWithSmallWeights) {
  const std::string tokens = joined(ids(golden_, "tokens"));
  for (const auto& [type, bound] : {std::pair("q8", 2.5e-2), {"q4", 3e-1}}) {
    const std::string small = folder_ / type, dump = folder_ / "small.safetensors";
    output_of({"convert", fixture(GetParam()), small, "--type", type});
    output_of({"score", "-m", small, "--tokens", tokens, "--dump", dump});
    const SafetensorsFile found = SafetensorsFile::open(dump);
    const double error = relative_error(floats(found, "logits"), floats(golden_, "logits"));
    std::printf("%-8s %s: relative error of the logits %.1e\n", GetParam(), type, error);
    EXPECT_LE(error, bound);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, Fixture,
                         testing::Values("base", "gqa", "legacy", "relu", "t2r", "conv", "expand",
                                         "wide"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace gsa::test
