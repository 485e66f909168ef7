#include "text/stop_strings.h"

#include <algorithm>
#include <random>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace gsa {
namespace {

using testing::ElementsAre;
using Strings = std::vector<std::string>;

// Every push() result, then that of finish().
Strings shown(const Strings& stops, const Strings& pieces) {
  StopStrings filter(stops);
  Strings all;
  for (const std::string& piece : pieces) all.push_back(filter.push(piece));
  all.push_back(filter.finish());
  return all;
}

struct Cut {
  std::string text;
  bool stopped;
};

// The text before the first stop to be complete, by trying every end and every stop.
Cut cut_naively(const Strings& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string seen = text.substr(0, end);
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (seen.ends_with(stop)) longest = std::max(longest, stop.size());
    }
    if (longest > 0) return {text.substr(0, end - longest), true};
  }
  return {text, false};
}

// Bytes at the end of `text` that could begin a stop.
size_t must_hold(const Strings& stops, const std::string& text) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = 1; n < stop.size(); ++n) {
      if (text.ends_with(stop.substr(0, n))) longest = std::max(longest, n);
    }
  }
  return longest;
}

class RandomText {
 public:
  std::string of(size_t bound) {
    std::string text(random_() % bound, '\0');
    for (char& byte : text) byte = static_cast<char>('a' + random_() % 3);
    return text;
  }

  // Pieces of any length, empty ones included, that make up `text`.
  Strings split(const std::string& text) {
    Strings pieces;
    for (size_t at = 0; at < text.size();) {
      pieces.push_back(text.substr(at, random_() % 5));
      at += pieces.back().size();
    }
    return pieces;
  }

 private:
  std::mt19937 random_{4};
};

TEST(StopStrings, CutsAsTheDefinitionSaysHoweverTheTextComes) {
  RandomText random;
  int stopped = 0;
  constexpr int kRounds = 20000;
  for (int round = 0; round < kRounds; ++round) {
    Strings stops;
    for (int n = round % 4; n >= 0; --n) stops.push_back(random.of(7));
    const std::string text = random.of(40);
    const Cut expected = cut_naively(stops, text);

    StopStrings filter(stops);
    std::string given, seen;
    for (const std::string& piece : random.split(text)) {
      seen += piece;
      given += filter.push(piece);
      const Cut so_far = cut_naively(stops, seen);
      ASSERT_EQ(filter.stopped(), so_far.stopped);
      const size_t held = so_far.stopped ? 0 : must_hold(stops, seen);
      ASSERT_EQ(given, so_far.text.substr(0, so_far.text.size() - held))
          << testing::PrintToString(stops) << seen;
    }
    given += filter.finish();
    ASSERT_EQ(given, expected.text);
    stopped += expected.stopped;
  }
  EXPECT_GT(stopped, kRounds / 10);
  EXPECT_LT(stopped, kRounds * 9 / 10);
}

TEST(StopStrings, LetsEverythingThroughWhereThereAreNone) {
  EXPECT_THAT(shown({}, {"a", "", "b"}), ElementsAre("a", "", "b", ""));
  EXPECT_THAT(shown({"", ""}, {"a"}), ElementsAre("a", ""));
}

TEST(StopStrings, StopsAtTheFirstToBeComplete) {
  EXPECT_THAT(shown({"abcd", "bc"}, {"xabcd"}), ElementsAre("xa", ""));
  EXPECT_THAT(shown({"stop", "stopping"}, {"a stopping"}), ElementsAre("a ", ""));
}

TEST(StopStrings, TakesTheLongestOfThoseCompleteAtOnce) {
  EXPECT_THAT(shown({"c", "abc"}, {"x", "a", "b", "c"}), ElementsAre("x", "", "", "", ""));
}

TEST(StopStrings, FindsAStopAcrossManyPieces) {
  EXPECT_THAT(shown({"\n\nUser:"}, {"Hi.", "\n", "", "\n", "Us", "er", ": more", "text"}),
              ElementsAre("Hi.", "", "", "", "", "", "", "", ""));
}

TEST(StopStrings, GivesBackWhatOnlyBeganLikeAStop) {
  EXPECT_THAT(shown({"aab"}, {"a", "a", "a", "c"}), ElementsAre("", "", "a", "aac", ""));
  EXPECT_THAT(shown({"aab"}, {"xaa"}), ElementsAre("x", "aa"));
}

TEST(StopStrings, GivesWholeCharactersOut) {
  EXPECT_THAT(shown({"\xC3\xA9!"}, {"\xC3\xA8", "\xC3\xA9", "\xC3\xA8"}),
              ElementsAre("\xC3\xA8", "", "\xC3\xA9\xC3\xA8", ""));
}

TEST(StopStrings, SaysNothingAfterAStop) {
  StopStrings filter({"."});
  EXPECT_EQ(filter.push("One. Two"), "One");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.push(" three."), "");
  EXPECT_EQ(filter.finish(), "");
}

TEST(StopStrings, StaysLinearInALongTextAndALongStop) {
  StopStrings filter({std::string(100'000, 'a').append("b")});
  std::string given;
  for (int i = 0; i < 1000; ++i) given += filter.push(std::string(1000, 'a'));
  EXPECT_EQ(given.size(), 900'000u);
  EXPECT_EQ(filter.push("b"), "");
  EXPECT_TRUE(filter.stopped());
}

}  // namespace
}  // namespace gsa
