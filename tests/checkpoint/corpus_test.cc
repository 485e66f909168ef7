#include "tests/support/corpus.h"

#include <gtest/gtest.h>

#include "tests/fuzz/entries.h"

namespace gsa {
namespace {

using test::run_corpus;

TEST(Corpus, SafetensorsFilesAreReadOrRefused) { run_corpus("safetensors", fuzz::safetensors); }

TEST(Corpus, ConfigsAreReadOrRefused) { run_corpus("config", fuzz::config); }

TEST(Corpus, TokenizersAreReadOrRefused) { run_corpus("tokenizer_json", fuzz::tokenizer_json); }

}  // namespace
}  // namespace gsa
