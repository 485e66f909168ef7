#include "text/utf8.h"

#include <cstdint>
#include <random>
#include <string>

#include <gtest/gtest.h>

namespace gsa {
namespace {

std::string encode(uint32_t code) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
  if (code < 0x80) return {static_cast<char>(code)};
  if (code < 0x800) return {static_cast<char>(0xC0 | code >> 6), tail(0)};
  if (code < 0x10000) return {static_cast<char>(0xE0 | code >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | code >> 18), tail(12), tail(6), tail(0)};
}

std::string replacements(size_t count) {
  std::string text;
  while (count-- > 0) text += kReplacement;
  return text;
}

TEST(Utf8, KeepsEveryCharacterAndReplacesEverySurrogateAndWhatIsTooLarge) {
  for (uint32_t code = 0; code < 0x200000; ++code) {
    const bool character = code < 0x110000 && (code < 0xD800 || code > 0xDFFF);
    const std::string bytes = encode(code);
    ASSERT_EQ(repair_utf8(bytes), character ? bytes : replacements(bytes.size())) << code;
  }
}

TEST(Utf8, ReplacesEveryByteOfAnOverlongForm) {
  for (const std::string bytes : {"\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF",
                                  "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF"}) {
    EXPECT_EQ(repair_utf8(bytes), replacements(bytes.size()));
  }
}

TEST(Utf8, ReplacesABrokenCharacterByteByByteAndGoesOnBehindIt) {
  EXPECT_EQ(repair_utf8("a\xE2\x82z"), "a\xEF\xBF\xBD\xEF\xBF\xBDz");
  EXPECT_EQ(repair_utf8("\xF0\x9F\xE2\x82\xAC"), replacements(2) + "\xE2\x82\xAC");
  EXPECT_EQ(repair_utf8("\x80\xBF"), replacements(2));
}

TEST(Utf8, TakesNoMoreThanIsCertain) {
  std::string bytes = "a\xE2\x82";
  EXPECT_EQ(take_utf8(bytes, false), "a");
  EXPECT_EQ(bytes, "\xE2\x82");
  bytes += '\xAC';
  EXPECT_EQ(take_utf8(bytes, false), "\xE2\x82\xAC");
  EXPECT_EQ(bytes, "");
  bytes = "\xF0\x9F";
  EXPECT_EQ(take_utf8(bytes, true), replacements(2));
  EXPECT_EQ(bytes, "");
}

TEST(Utf8, GivesTheSameHoweverTheBytesCome) {
  std::mt19937 random(5);
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    for (int n = random() % 6; n > 0; --n) {
      text +=
          random() % 2 ? encode(random() % 0x110000) : std::string(1, static_cast<char>(random()));
    }
    std::string held, given;
    for (char byte : text) {
      held += byte;
      given += take_utf8(held, false);
      ASSERT_LE(held.size(), 3u);
    }
    ASSERT_EQ(given + take_utf8(held, true), repair_utf8(text));
  }
}

}  // namespace
}  // namespace gsa
