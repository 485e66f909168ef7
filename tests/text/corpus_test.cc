#include "tests/support/corpus.h"

#include <gtest/gtest.h>

#include "tests/fuzz/text_entries.h"

namespace gsa {
namespace {

TEST(Corpus, ChatTemplatesAreRenderedOrRefused) {
  test::run_corpus("chat_template", fuzz::chat_template);
}

}  // namespace
}  // namespace gsa
