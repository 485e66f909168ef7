#include "text/tokenizer.h"

#include <random>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "checkpoint/convert.h"
#include "kernels/error.h"
#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"
#include "tests/text/tokenizers.h"
#include "text/utf8.h"

namespace gsa {
namespace {

using test::error_of;
using test::load_tokenizer;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;
using Ids = std::vector<int32_t>;
using Kind = Tokenizer::Kind;

std::string from_hex(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

// The cases of one model and kind in vectors.json.
std::vector<nlohmann::json> vectors(const std::string& model, const std::string& kind) {
  static const nlohmann::json all =
      nlohmann::json::parse(test::read_bytes(test::text_data("vectors.json")));
  std::vector<nlohmann::json> found;
  for (const auto& test_case : all) {
    if (test_case["model"] == model && test_case["kind"] == kind) found.push_back(test_case);
  }
  return found;
}

class TokenizerModels : public testing::TestWithParam<const char*> {
 protected:
  const Tokenizer tokenizer_ = load_tokenizer(GetParam());
};

INSTANTIATE_TEST_SUITE_P(All, TokenizerModels, testing::ValuesIn(test::kTokenizerModels),
                         [](const auto& info) {
                           const std::string file = info.param;
                           return file.substr(0, file.find('.'));
                         });

TEST_P(TokenizerModels, EncodesAsSentencepieceDoes) {
  const auto cases = vectors(GetParam(), "encode");
  ASSERT_GT(cases.size(), 40u);
  for (const auto& test_case : cases) {
    const std::string text = from_hex(test_case["bytes"]);
    EXPECT_EQ(tokenizer_.encode_plain(text), test_case["ids"].get<Ids>()) << text;
    EXPECT_EQ(tokenizer_.decode(test_case["ids"]), test_case["decoded"]) << text;
  }
}

TEST_P(TokenizerModels, DecodesAnyIdsAsSentencepieceDoes) {
  const auto cases = vectors(GetParam(), "decode");
  ASSERT_GE(cases.size(), 300u);
  for (const auto& test_case : cases) {
    EXPECT_EQ(tokenizer_.decode(test_case["ids"]), test_case["text"]) << test_case["ids"];
  }
}

TEST_P(TokenizerModels, NeverReadsAControlTokenOutOfText) {
  int control_tokens = 0;
  for (int32_t control = 0; control < tokenizer_.size(); ++control) {
    if (tokenizer_.kind(control) != Kind::kControl) continue;
    ++control_tokens;
    const std::string piece = tokenizer_.piece(control);
    for (const std::string& text : {piece, " " + piece, piece + piece, "a" + piece + "b"}) {
      for (int32_t id : tokenizer_.encode_plain(text)) {
        EXPECT_NE(tokenizer_.kind(id), Kind::kControl) << text;
      }
    }
  }
  EXPECT_GE(control_tokens, 2);
}

TEST_P(TokenizerModels, ReadsAnyBytes) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    std::string text(random() % 200, '\0');
    for (char& byte : text) byte = static_cast<char>(random());
    const std::string decoded = tokenizer_.decode(tokenizer_.encode_plain(text));
    EXPECT_EQ(repair_utf8(decoded), decoded);
  }
}

TEST_P(TokenizerModels, ReadsLongTextOfEveryKind) {
  // The unigram model has no bytes, so runs of what it does not know are one token, which the
  // library puts together in quadratic time.
  const bool exact = GetParam() != std::string("unigram.model");
  const size_t size = exact ? 1'000'000 : 50'000;
  for (const std::string unit : {"word ", "a", " ", "\n", "\xE6\x97\xA5", "\xFF"}) {
    std::string text;
    while (text.size() < size) text += unit;
    const std::string decoded = tokenizer_.decode(tokenizer_.encode(text));
    EXPECT_TRUE(!exact || decoded == repair_utf8(text)) << unit;
  }
}

TEST_P(TokenizerModels, GivesNothingForIdsItDoesNotHave) {
  for (int32_t id : {-1, static_cast<int32_t>(tokenizer_.size()), INT32_MIN, INT32_MAX}) {
    EXPECT_EQ(tokenizer_.piece(id), "");
    EXPECT_EQ(tokenizer_.bytes(id), "");
    EXPECT_EQ(tokenizer_.kind(id), Kind::kControl);
    EXPECT_EQ(tokenizer_.decode({id, id}), "");
  }
}

TEST(Tokenizer, SaysWhatATokenIs) {
  const Tokenizer tokenizer = load_tokenizer("tokenizer.model");
  EXPECT_EQ(tokenizer.size(), 4096);
  EXPECT_EQ(tokenizer.kind(0), Kind::kUnknown);
  EXPECT_EQ(tokenizer.bytes(0), " \xE2\x81\x87 ");
  EXPECT_EQ(tokenizer.kind(1), Kind::kControl);
  EXPECT_EQ(tokenizer.piece(1), "<s>");
  EXPECT_EQ(tokenizer.bytes(1), "");
  EXPECT_EQ(tokenizer.kind(3 + 0xE2), Kind::kByte);
  EXPECT_EQ(tokenizer.piece(3 + 0xE2), "<0xE2>");
  EXPECT_EQ(tokenizer.bytes(3 + 0xE2), "\xE2");
  const Ids the = tokenizer.encode_plain("the");
  ASSERT_EQ(the.size(), 1u);
  EXPECT_EQ(tokenizer.kind(the[0]), Kind::kText);
  EXPECT_EQ(tokenizer.piece(the[0]), "\xE2\x96\x81the");
  EXPECT_EQ(tokenizer.bytes(the[0]), " the");
}

TEST(Tokenizer, KnowsWhatItsModelDoesWithTheFirstBlank) {
  using LeadingBlank = Tokenizer::LeadingBlank;
  EXPECT_EQ(load_tokenizer("tokenizer.model").leading_blank(), LeadingBlank::kDropFirst);
  EXPECT_EQ(load_tokenizer("unigram.model").leading_blank(), LeadingBlank::kDropEvery);
  EXPECT_EQ(load_tokenizer("no_prefix.model").leading_blank(), LeadingBlank::kKeep);
}

TEST(Tokenizer, ReturnsTheTextItWasGiven) {
  const Tokenizer tokenizer = load_tokenizer("tokenizer.model");
  for (const std::string text :
       {"", " ", "  two  blanks  ", "line\nline\r\n", "caf\xC3\xA9 \xF0\x9F\x91\x8D", "<s></s>"}) {
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  const std::string nul("a\0b\0", 4);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(nul)), nul);
}

TEST(Tokenizer, AddsBosAndEosWhereTheRulesSaySo) {
  const std::string model = test::read_bytes(test::text_data("tokenizer.model"));
  const auto encode = [&](TokenizerRules rules, int64_t bos_id, const char* text) {
    return Tokenizer(model, rules, bos_id, "model").encode(text);
  };
  const Ids plain = encode({}, 1, "the");
  ASSERT_EQ(plain.size(), 1u);
  const int32_t the = plain[0];
  EXPECT_THAT(encode({.add_bos = true}, 1, "the"), ElementsAre(1, the));
  EXPECT_THAT(encode({.add_bos = true}, 77, "the"), ElementsAre(77, the));
  EXPECT_THAT(encode({.add_bos = true}, -1, "the"), ElementsAre(the));
  EXPECT_THAT(encode({.add_eos = true}, 1, "the"), ElementsAre(the, 2));
  EXPECT_THAT(encode({.add_bos = true, .add_eos = true}, 1, ""), ElementsAre(1, 2));
  EXPECT_THAT(Tokenizer(model, {true, true}, 1, "model").encode_plain("the"), ElementsAre(the));
}

TEST(Tokenizer, IsReadByManyThreadsAtOnce) {
  const Tokenizer tokenizer = load_tokenizer("tokenizer.model", {.add_bos = true});
  const std::string text = "It was the White Rabbit, trotting slowly back again \xE2\x80\x94 oh!";
  const Ids ids = tokenizer.encode(text);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      const Tokenizer own = load_tokenizer("unigram.model");
      for (int round = 0; round < 50; ++round) {
        EXPECT_EQ(tokenizer.encode(text), ids);
        EXPECT_EQ(tokenizer.decode(ids), text);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// A field of a serialised sentencepiece model (protocol buffers), shorter than 128 bytes.
std::string field(int number, const std::string& bytes) {
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}

TEST(Tokenizer, WritesPiecesThatAreNoUtf8AsUtf8) {
  const std::string model = test::read_bytes(test::text_data("tokenizer.model"));
  const Tokenizer tokenizer(model + field(1, field(1, "\xE2\x96\x81\xFF\xE2\x82z")), {}, 1,
                            "model");
  ASSERT_EQ(tokenizer.size(), 4097);
  EXPECT_EQ(tokenizer.bytes(4096), " \xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz");
}

TEST(Tokenizer, RefusesWhatIsNoModelInOneLineAndSilence) {
  const std::string model = test::read_bytes(test::text_data("tokenizer.model"));
  const std::string failing_self_test = field(4, field(1, field(1, "a") + field(2, "zzz")));
  testing::internal::CaptureStderr();
  for (const std::string& bytes :
       {std::string(), std::string("no model\nat all"), model.substr(0, model.size() / 2 + 1),
        model.substr(1), model + failing_self_test, model + field(1, field(1, "e")),
        model + field(1, field(1, "")), std::string(1000, '\0')}) {
    const std::string error = error_of([&] { Tokenizer(bytes, {}, 1, "a.model"); });
    EXPECT_THAT(error, StartsWith("a.model: the tokenizer is no sentencepiece model"));
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Tokenizer, SurvivesAnyChangeOfAModel) {
  for (const char* name : test::kTokenizerModels) {
    const std::string model = test::read_bytes(test::text_data(name));
    std::mt19937 random(2);
    for (int round = 0; round < 200; ++round) {
      std::string bytes = model;
      // The settings stand at the end, the special pieces at the beginning.
      const size_t zone = round % 3 == 0 ? bytes.size() : std::min<size_t>(bytes.size(), 400);
      for (size_t change = 0; change < 1 + random() % 4; ++change) {
        const size_t at = random() % zone;
        bytes[round % 3 == 1 ? at : bytes.size() - 1 - at] = static_cast<char>(random());
      }
      try {
        const Tokenizer tokenizer(bytes, {}, 1, "a.model");
        tokenizer.decode(tokenizer.encode("Hello <s> w\xC3\xB6rld \xFF 12"));
      } catch (const Error&) {
      }
    }
  }
}

// A converted checkpoint of 512 words with a tokenizer, or none.
class TokenizerOfCheckpoint : public testing::Test {
 protected:
  Checkpoint convert_with(const std::string& model) {
    source_.write();
    if (!model.empty()) {
      test::write_bytes(source_.path / "tokenizer.model", test::read_bytes(test::text_data(model)));
    }
    convert(source_.path, source_.folder / "model.safetensors", {.force = true});
    return Checkpoint::open(source_.folder / "model.safetensors");
  }

  test::HfSource source_;
};

TEST_F(TokenizerOfCheckpoint, TakesModelRulesAndBosFromIt) {
  const Tokenizer tokenizer(convert_with("no_prefix.model"));
  EXPECT_EQ(tokenizer.size(), 400);
  EXPECT_THAT(tokenizer.encode(""), ElementsAre(1));
}

TEST_F(TokenizerOfCheckpoint, AddsNoBosToAModelThatHasNone) {
  source_.config["bos_token_id"] = nullptr;
  EXPECT_THAT(Tokenizer(convert_with("no_prefix.model")).encode(""), ElementsAre());
}

TEST_F(TokenizerOfCheckpoint, IsRefusedWhereThereIsNone) {
  const Checkpoint checkpoint = convert_with("");
  EXPECT_EQ(error_of([&] { Tokenizer{checkpoint}; }),
            checkpoint.name() + ": has no tokenizer; give token ids in place of text");
}

TEST_F(TokenizerOfCheckpoint, IsRefusedWhereItHasMorePiecesThanTheVocabulary) {
  const Checkpoint checkpoint = convert_with("tokenizer.model");
  EXPECT_THAT(error_of([&] { Tokenizer{checkpoint}; }),
              HasSubstr("the tokenizer has 4096 pieces, more than vocab_size 512"));
}

}  // namespace
}  // namespace gsa
