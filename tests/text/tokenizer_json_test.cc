#include "checkpoint/tokenizer_json.h"

#include <cstdint>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/text/tokenizers.h"

namespace gsa {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

constexpr int kLines = 10'000;

json read_json(const std::string& name) {
  return json::parse(test::read_bytes(test::text_data("tokenizer_json/" + name)));
}

Tokenizer tokenizer_of(const json& root) {
  const ConvertedTokenizer converted = convert_tokenizer_json(root.dump(), "tokenizer.json");
  const TokenizerRules rules = {.blank_once = converted.blank_once,
                                .blank_after_special = converted.blank_after_special};
  return Tokenizer(converted.model, rules, /*bos_id=*/1, "tokenizer.json");
}

// The generator, the lines and the hash of make_tokenizer_json.py.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t limit) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % limit;
  }

 private:
  uint64_t state_;
};

std::vector<std::string> make_lines(const json& fragments) {
  std::vector<std::string> lines;
  for (int index = 0; index < kLines; ++index) {
    Random random(static_cast<uint64_t>(index));
    std::string line;
    for (uint64_t count = random.below(12); count > 0; --count) {
      line += fragments[random.below(fragments.size())].get_ref<const std::string&>();
    }
    lines.push_back(line);
  }
  return lines;
}

std::string listed(const Ids& ids) {
  std::string text;
  for (int32_t id : ids) text += std::to_string(id) + " ";
  return text;
}

std::string hash_of(const std::vector<std::string>& lists) {
  uint64_t value = 0xCBF29CE484222325u;
  for (const std::string& list : lists) {
    for (char c : list + "\n") value = (value ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  }
  return fmt::format("{:08x}", value >> 32);
}

// What the line gives as text, its ids as text again, and what it gives as a template.
std::string outcome(const Tokenizer& tokenizer, const std::string& line) {
  const Ids ids = tokenizer.encode_plain(line);
  const std::vector<PromptPiece> prompt = {{line, /*content=*/false}};
  return hash_of({listed(ids), tokenizer.decode(ids), listed(tokenizer.encode_prompt(prompt))});
}

class TokenizerJson : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerJson, GivesTheIdsAndTextOfTheTokenizersLibrary) {
  const json forms = read_json("forms.json");
  const json& form = forms["forms"].at(GetParam());
  json root = read_json("base.json");
  root.merge_patch(form["patch"]);
  const Tokenizer tokenizer = tokenizer_of(root);
  const std::string& hashes = form["hashes"].get_ref<const std::string&>();
  const std::vector<std::string> lines = make_lines(forms["fragments"]);
  ASSERT_EQ(hashes.size(), 8u * kLines);
  int wrong = 0;
  for (int i = 0; i < kLines && wrong < 10; ++i) {
    const std::string found = outcome(tokenizer, lines[i]);
    EXPECT_EQ(found, hashes.substr(8 * i, 8)) << "line " << i << ": " << lines[i];
    wrong += found != hashes.substr(8 * i, 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Forms, TokenizerJson,
                         testing::Values("normalizer", "first", "always", "words", "no prefix",
                                         "never", "added", "unreachable"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, ' ');
                           return name;
                         });

// tale.json is tokenizer.model as transformers' converter would write it.
TEST(TokenizerJsonOfTale, GivesTheIdsOfTheModelItWasMadeFrom) {
  const Tokenizer original = test::load_tokenizer("tokenizer.model");
  const Tokenizer converted = tokenizer_of(read_json("tale.json"));
  ASSERT_EQ(converted.size(), original.size());
  for (int32_t id = 0; id < original.size(); ++id) {
    ASSERT_EQ(converted.piece(id), original.piece(id));
    ASSERT_EQ(converted.kind(id), original.kind(id));
  }
  for (const std::string& line : make_lines(read_json("forms.json")["fragments"])) {
    const Ids ids = original.encode_plain(line);
    ASSERT_EQ(converted.encode_plain(line), ids) << line;
    ASSERT_EQ(converted.decode(ids), original.decode(ids)) << line;
  }
}

}  // namespace
}  // namespace gsa
