// Models of small weights as a user makes and measures them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "tests/support/hf_source.h"
#include "tests/support/program.h"
#include "tools/gsa/divergence.h"

namespace gsa::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const std::string& passage() {
  static const std::string path = (tree() / "tests/data/text/passage.txt").string();
  return path;
}

json measured(const std::string& model, const std::string& base) {
  return json::parse(output_of(
      {"perplexity", "-m", model, "-f", passage(), "--kl", base, "--json", "--device", "cpu"}));
}

TEST(QuantizedModel, PredictsNearlyAsWellAsItsSource) {
  const TemporaryFolder folder;
  const json same = measured(tale(), tale());
  EXPECT_EQ(same.at("kl_mean"), 0);
  EXPECT_EQ(same.at("top1_agreement"), 1);
  struct Bound {
    const char* type;
    double perplexity, divergence, agreement;
  };
  for (const Bound& b : {Bound{"q8", 0.002, 0.001, 0.97}, Bound{"q4", 0.03, 0.05, 0.85}}) {
    SCOPED_TRACE(b.type);
    output_of({"convert", tale(), folder / b.type, "--type", b.type});
    const json found = measured(folder / b.type, tale());
    const double ratio = found.at("ppl").get<double>() / same.at("ppl").get<double>();
    EXPECT_NEAR(ratio, 1, b.perplexity);
    EXPECT_LT(found.at("kl_mean"), b.divergence);
    EXPECT_GT(found.at("kl_mean"), 0);
    EXPECT_LT(found.at("kl_mean"), found.at("kl_p99"));
    EXPECT_GT(found.at("top1_agreement"), b.agreement);
  }
}

TEST(QuantizedModel, GeneratesAndGoesOnFromASavedState) {
  const TemporaryFolder folder;
  const std::string model = folder / "q4", state = folder / "state";
  output_of({"convert", tale(), model, "--type", "q4"});
  const std::vector<std::string> common = {"generate", "-m",       model, "--temp",
                                           "0",        "--device", "cpu"};
  const auto generate = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return output_of(more);
  };
  const std::string whole = generate({"-p", "Once upon a time", "-n", "24"});
  std::string first = generate({"-p", "Once upon a time", "-n", "9", "--save-state", state});
  first.pop_back();  // the end of the line
  EXPECT_EQ(first + generate({"--load-state", state, "-n", "15"}), whole);
  const Outcome refused = run({"generate", "-m", tale(), "--load-state", state, "-n", "1"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_EQ(json::parse(output_of({"inspect", model, "--json"})).at("type"), "q4");
}

TEST(QuantizedModel, IsComparedOnlyWithAModelOfTheSameVocabulary) {
  const TemporaryFolder folder;
  output_of({"convert", fixture("base"), folder / "base"});
  const Outcome outcome =
      run({"perplexity", "-m", tale(), "-f", passage(), "--kl", folder / "base"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err, HasSubstr("has a vocabulary of"));
}

TEST(Divergence, IsThatOfTheDistributionsWhateverTheLogitsBegin) {
  Divergence divergence;
  const float a = std::log(0.5f), b = std::log(0.25f);
  const std::vector<float> base = {a, b, b}, other = {b + 7, a + 7, b + 7};
  divergence.add(base, other);
  EXPECT_NEAR(divergence.mean(), 0.5 * std::log(2.0) - 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(divergence.top1_agreement(), 0);
  for (int i = 0; i < 99; ++i) divergence.add(base, base);
  EXPECT_NEAR(divergence.mean(), 0.0025 * std::log(2.0), 1e-7);
  EXPECT_EQ(divergence.top1_agreement(), 0.99);
  EXPECT_NEAR(divergence.percentile(99), 0, 1e-12);
  EXPECT_NEAR(divergence.percentile(99.5), 0.25 * std::log(2.0), 1e-6);
}

}  // namespace
}  // namespace gsa::test
