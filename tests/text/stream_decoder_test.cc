#include "text/stream_decoder.h"

#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/text/tokenizers.h"
#include "text/utf8.h"

namespace gsa {
namespace {

using test::load_tokenizer;
using testing::ElementsAre;
using Ids = std::vector<int32_t>;
using Kind = Tokenizer::Kind;

// Every push() result, then that of finish().
std::vector<std::string> pieces(const Tokenizer& tokenizer, const Ids& ids,
                                bool continues = false) {
  StreamDecoder decoder(tokenizer, continues);
  std::vector<std::string> all;
  for (int32_t id : ids) all.push_back(decoder.push(id));
  all.push_back(decoder.finish());
  return all;
}

std::string joined(const std::vector<std::string>& pieces) {
  std::string text;
  for (const std::string& piece : pieces) text += piece;
  return text;
}

// What decoding means, written for whole texts: runs of bytes are read as UTF-8, and the first
// blanks go as the model says.
std::string decode_at_once(const Tokenizer& tokenizer, const Ids& ids) {
  std::string text, run;
  bool drop = tokenizer.leading_blank() != Tokenizer::LeadingBlank::kKeep;
  for (int32_t id : ids) {
    if (tokenizer.kind(id) == Kind::kByte) {
      run += tokenizer.bytes(id);
      continue;
    }
    text += repair_utf8(run);
    run.clear();
    std::string bytes = tokenizer.bytes(id);
    const bool leads = tokenizer.kind(id) == Kind::kText && bytes.starts_with(' ');
    if (drop && text.empty() && leads) {
      bytes.erase(0, 1);
      drop = tokenizer.leading_blank() == Tokenizer::LeadingBlank::kDropEvery;
    }
    text += bytes;
  }
  return text + repair_utf8(run);
}

// Ids of all kinds, with runs of bytes that form characters and runs that do not.
class RandomIds {
 public:
  explicit RandomIds(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
    for (int32_t id = 0; id < tokenizer.size(); ++id) {
      (tokenizer.kind(id) == Kind::kByte ? bytes_ : others_).push_back(id);
      if (tokenizer.piece(id) == kBlankSymbol) blank_ = id;
      if (tokenizer.kind(id) == Kind::kControl || tokenizer.kind(id) == Kind::kUnknown) {
        special_.push_back(id);
      }
    }
    special_.push_back(-1);
    special_.push_back(static_cast<int32_t>(tokenizer.size()));
  }

  Ids draw() {
    Ids ids;
    for (size_t runs = below(8); runs > 0; --runs) append_run(ids);
    return ids;
  }

 private:
  size_t below(size_t bound) { return random_() % bound; }
  int32_t one_of(const Ids& ids) { return ids[below(ids.size())]; }

  void append_run(Ids& ids) {
    switch (below(bytes_.empty() ? 3 : 6)) {
      case 0:
        ids.push_back(one_of(special_));
        break;
      case 1:
        ids.push_back(blank_);
        break;
      case 2:
        ids.push_back(one_of(others_));
        break;
      case 3:
        for (size_t n = 1 + below(4); n > 0; --n) ids.push_back(one_of(bytes_));
        break;
      default: {
        static const std::vector<std::string> characters = {"a",
                                                            "\xC3\xA9",
                                                            "\xE2\x82\xAC",
                                                            "\xED\x9F\xBF",
                                                            "\xEF\xBF\xBD",
                                                            "\xF0\x9F\x98\x80",
                                                            "\xF4\x8F\xBF\xBF",
                                                            "\xED\xA0\x80",
                                                            "\xE0\x80\xAF",
                                                            "\xF4\x90\x80\x80"};
        std::string character = characters[below(characters.size())];
        if (below(3) == 0) character.resize(below(character.size() + 1));
        for (unsigned char byte : character) ids.push_back(bytes_[byte]);
      }
    }
  }

  const Tokenizer& tokenizer_;
  std::mt19937 random_{3};
  Ids bytes_, others_, special_;
  int32_t blank_ = -1;
};

class StreamDecoderModels : public testing::TestWithParam<const char*> {
 protected:
  const Tokenizer tokenizer_ = load_tokenizer(GetParam());
};

INSTANTIATE_TEST_SUITE_P(All, StreamDecoderModels, testing::ValuesIn(test::kTokenizerModels),
                         [](const auto& info) {
                           const std::string file = info.param;
                           return file.substr(0, file.find('.'));
                         });

TEST_P(StreamDecoderModels, GivesTheTextOfTheWholeInWholeCharacters) {
  RandomIds random(tokenizer_);
  for (int round = 0; round < 5000; ++round) {
    const Ids ids = random.draw();
    const std::vector<std::string> got = pieces(tokenizer_, ids);
    ASSERT_EQ(joined(got), decode_at_once(tokenizer_, ids)) << testing::PrintToString(ids);
    ASSERT_EQ(joined(got), tokenizer_.decode(ids));
    for (const std::string& piece : got) ASSERT_EQ(repair_utf8(piece), piece);
  }
}

// Text is held only while it could still become a character: what was given after any id is what
// the ids so far give as a whole, but for at most three bytes held.
TEST_P(StreamDecoderModels, HoldsBackNothingButAnUnfinishedCharacter) {
  RandomIds random(tokenizer_);
  for (int round = 0; round < 1000; ++round) {
    const Ids ids = random.draw();
    StreamDecoder decoder(tokenizer_);
    std::string given;
    for (size_t i = 0; i < ids.size(); ++i) {
      given += decoder.push(ids[i]);
      const std::string whole = tokenizer_.decode({ids.begin(), ids.begin() + i + 1});
      ASSERT_TRUE(whole.starts_with(given));
      const std::string held = whole.substr(given.size());
      if (tokenizer_.kind(ids[i]) != Kind::kByte) {
        ASSERT_EQ(held, "");
      }
      ASSERT_LE(held.size(), 3 * kReplacement.size());
    }
  }
}

TEST_P(StreamDecoderModels, GoesOnWhereEarlierTextEnds) {
  RandomIds random(tokenizer_);
  int compared = 0;
  for (int round = 0; round < 2000; ++round) {
    const Ids before = random.draw(), after = random.draw();
    if (tokenizer_.decode(before).empty() || tokenizer_.kind(before.back()) == Kind::kByte)
      continue;
    Ids both = before;
    both.insert(both.end(), after.begin(), after.end());
    ASSERT_EQ(tokenizer_.decode(before) + joined(pieces(tokenizer_, after, /*continues=*/true)),
              tokenizer_.decode(both));
    ++compared;
  }
  EXPECT_GT(compared, 300);
}

class StreamDecoderOfTale : public testing::Test {
 protected:
  static int32_t byte(int value) { return 3 + value; }
  const Tokenizer tokenizer_ = load_tokenizer("tokenizer.model");
};

TEST_F(StreamDecoderOfTale, GivesACharacterOfByteTokensWhenItIsWhole) {
  EXPECT_THAT(pieces(tokenizer_, {byte(0xF0), byte(0x9F), byte(0x98), byte(0x80)}),
              ElementsAre("", "", "", "\xF0\x9F\x98\x80", ""));
}

TEST_F(StreamDecoderOfTale, GivesBytesThatCanBecomeNoCharacterAtOnce) {
  EXPECT_THAT(pieces(tokenizer_, {byte(0xFF), byte(0xED), byte(0xA0), byte('a')}),
              ElementsAre("\xEF\xBF\xBD", "", "\xEF\xBF\xBD\xEF\xBF\xBD", "a", ""));
}

TEST_F(StreamDecoderOfTale, EndsAnUnfinishedCharacterWhereTextFollowsOrNothingDoes) {
  const int32_t the = tokenizer_.encode_plain("the")[0];
  const int32_t bos = 1;
  EXPECT_THAT(pieces(tokenizer_, {byte(0xE2), byte(0x82), the}),
              ElementsAre("", "", "\xEF\xBF\xBD\xEF\xBF\xBD the", ""));
  EXPECT_THAT(pieces(tokenizer_, {byte(0xE2), bos, byte(0x82), byte(0xC3)}),
              ElementsAre("", "\xEF\xBF\xBD", "\xEF\xBF\xBD", "", "\xEF\xBF\xBD"));
}

TEST_F(StreamDecoderOfTale, DropsTheBlankBeforeTheFirstWordOnly) {
  const int32_t the = tokenizer_.encode_plain("the")[0];
  const int32_t bos = 1, unknown = 0;
  EXPECT_THAT(pieces(tokenizer_, {bos, the, the}), ElementsAre("", "the", " the", ""));
  EXPECT_THAT(pieces(tokenizer_, {the, the}, /*continues=*/true), ElementsAre(" the", " the", ""));
  EXPECT_THAT(pieces(tokenizer_, {unknown, the}), ElementsAre(" \xE2\x81\x87 ", " the", ""));
  EXPECT_THAT(pieces(tokenizer_, {byte(' '), the}), ElementsAre(" ", " the", ""));
}

}  // namespace
}  // namespace gsa
