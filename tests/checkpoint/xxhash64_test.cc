#include "checkpoint/xxhash64.h"

#include <string>

#include <gtest/gtest.h>

namespace gsa {
namespace {

uint64_t hash(const std::string& text) {
  XxHash64 state;
  state.update(text.data(), text.size());
  return state.digest();
}

// Values of the reference implementation (`xxhsum -H64`).
TEST(XxHash64, AgreesWithTheReferenceImplementation) {
  EXPECT_EQ(hash(""), 0xEF46DB3751D8E999u);
  EXPECT_EQ(hash("a"), 0xD24EC4F1A98C6E5Bu);
  EXPECT_EQ(hash("abc"), 0x44BC2CF5AD770999u);
  EXPECT_EQ(hash("Nobody inspects the spammish repetition"), 0xFBCEA83C8A378BF1u);
}

TEST(XxHash64, DoesNotDependOnThePieces) {
  std::string text;
  for (int i = 0; i < 300; ++i) text += static_cast<char>(i * 37);
  for (size_t piece : {1, 3, 7, 31, 32, 33, 100}) {
    XxHash64 state;
    for (size_t i = 0; i < text.size(); i += piece) {
      state.update(text.data() + i, std::min(piece, text.size() - i));
    }
    EXPECT_EQ(state.digest(), hash(text)) << piece;
  }
}

}  // namespace
}  // namespace gsa
