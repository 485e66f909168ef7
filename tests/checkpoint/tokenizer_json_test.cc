#include "checkpoint/tokenizer_json.h"

#include <map>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/convert.h"
#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"

namespace gsa {
namespace {

using nlohmann::json;
using test::error_of;
using test::write_bytes;
using testing::HasSubstr;
using testing::StartsWith;

json base() {
  return json::parse(test::read_bytes(std::filesystem::path(GSA_SOURCE_DIR) /
                                      "tests/data/text/tokenizer_json/base.json"));
}

json patched(const std::string& patch) {
  json root = base();
  root.merge_patch(json::parse(patch));
  return root;
}

std::string refusal(const json& root) {
  return error_of([&] { convert_tokenizer_json(root.dump(), "t.json"); });
}

const std::string kMetaspace =
    R"("normalizer":null,"pre_tokenizer":{"type":"Metaspace","replacement":"▁")";

TEST(TokenizerJsonReader, RefusesOtherKindsByName) {
  const std::map<std::string, std::string> cases = {
      {R"({"model":{"type":"WordPiece"}})", "a WordPiece tokenizer is not supported"},
      {R"({"model":{"type":"Unigram"}})", "a Unigram tokenizer is not supported"},
      {R"({"model":{"type":"WordLevel"}})", "a WordLevel tokenizer is not supported"},
      {R"({"model":{"type":null}})", "a tokenizer without a type is not supported"},
      {R"({"pre_tokenizer":{"type":"ByteLevel"}})", "byte-level BPE is not supported"},
      {R"({"decoder":{"type":"ByteLevel"}})", "byte-level BPE is not supported"},
      {R"({"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split"},
          {"type":"ByteLevel"}]}})",
       "byte-level BPE is not supported"},
      {R"({"model":{"byte_fallback":false}})", "BPE without byte fallback"},
      {R"({"model":{"ignore_merges":true}})", "BPE with ignore_merges"},
      {R"({"model":{"dropout":0.1}})", "BPE with dropout"},
      {R"({"model":{"end_of_word_suffix":"</w>"}})", "BPE with end_of_word_suffix"},
      {R"({"model":{"unk_token":null}})", "BPE without unk_token"},
      {R"({"normalizer":{"type":"NFKC"}})", "the normalizer NFKC is not supported"},
      {R"({"normalizer":{"type":"Sequence","normalizers":[{"type":"Lowercase"}]}})",
       "the normalizer Lowercase is not supported"},
      {R"({"normalizer":null})", "blanks are not written as"},
      {R"({"pre_tokenizer":{"type":"Whitespace"}})", "the pre-tokenizer Whitespace"},
      {R"({"decoder":{"type":"Metaspace"}})", "the decoder Metaspace is not supported"},
      {R"({"decoder":null})", "the decoder does not undo"},
      {"{" + kMetaspace + R"(,"prepend_scheme":"never","split":false}})",
       "the decoder does not undo"},
      {R"({"post_processor":{"type":"BertProcessing"}})", "the post-processor BertProcessing"},
  };
  for (const auto& [patch, expected] : cases) {
    SCOPED_TRACE(patch);
    const std::string error = refusal(patched(patch));
    EXPECT_THAT(error, StartsWith("t.json: " + expected));
    EXPECT_THAT(error, HasSubstr("give a sentencepiece model with --tokenizer FILE.model"));
  }
}

TEST(TokenizerJsonReader, RefusesAddedTokensThatSentencepieceCannotHave) {
  const auto with_token = [](json root, const std::string& token) {
    root["added_tokens"].push_back(json::parse(token));
    return refusal(root);
  };
  EXPECT_THAT(with_token(base(), R"({"id":2000,"content":"<t>","rstrip":true,"special":true})"),
              HasSubstr("the added token \"<t>\" has rstrip"));
  EXPECT_THAT(with_token(base(), R"({"id":2000,"content":"<t>","special":false})"),
              HasSubstr("a blank follows the added token \"<t>\", which is not special"));
  EXPECT_THAT(with_token(base(), R"({"id":2001,"content":"<t>","special":true})"),
              HasSubstr("no token has the id 2000"));
  EXPECT_THAT(with_token(base(), R"({"id":5,"content":"<t>","special":true})"),
              HasSubstr("the id 5 belongs to \"[/INST]\" and to \"<t>\""));
  EXPECT_THAT(with_token(base(), R"({"id":2000,"content":"[INST]","special":true})"),
              HasSubstr("the added token \"[INST]\" has the id 2000, and in the vocabulary 4"));
  EXPECT_THAT(with_token(base(), R"({"id":99999999,"content":"<t>"})"), HasSubstr("\"id\""));
  const json first = patched("{" + kMetaspace + R"(,"prepend_scheme":"first","split":false}})");
  EXPECT_THAT(with_token(first, R"({"id":2000,"content":"a b","special":false})"),
              HasSubstr("the added token \"a b\", which is not special, has a blank"));
}

TEST(TokenizerJsonReader, NamesWhatIsBroken) {
  json root = base();
  root["model"]["vocab"].erase("<0x7F>");
  EXPECT_THAT(refusal(root), HasSubstr("the byte <0x7F> is not in the vocabulary"));
  root = base();
  root["model"]["merges"][3] = "onlyone";
  EXPECT_THAT(refusal(root), HasSubstr("the merge 3 is no pair of pieces"));
  root["model"]["merges"][3] = json::array({"q", "zzzz"});
  EXPECT_THAT(refusal(root), HasSubstr("the merge 3 of \"q\" and \"zzzz\" is not new, or not in"));
  root["model"]["merges"][3] = json::array({"<0xE2>", "<0x82>"});
  EXPECT_THAT(refusal(root), HasSubstr("the merge 3 is one of bytes"));
  root = base();
  root["model"]["vocab"][""] = 2000;
  EXPECT_THAT(refusal(root), HasSubstr("the piece 2000 has 0 bytes"));
  root = base();
  root.erase("model");
  EXPECT_EQ(refusal(root), "t.json: field \"model\" is missing");
  EXPECT_EQ(error_of([] { convert_tokenizer_json("{", "t.json"); }),
            "t.json: not valid JSON at line 1, column 2");
}

TEST(TokenizerJsonReader, ReadsMergesInBothForms) {
  json root = base();
  const std::string pairs = convert_tokenizer_json(root.dump(), "t.json").model;
  for (json& merge : root["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  EXPECT_EQ(convert_tokenizer_json(root.dump(), "t.json").model, pairs);
}

// Nothing but an answer or a gsa::Error of one line, whatever is missing or of another type.
TEST(TokenizerJsonReader, SurvivesAnyChangeOfAPart) {
  json original = base();
  original["model"]["merges"] = json::array();
  for (auto it = original["model"]["vocab"].begin(); it != original["model"]["vocab"].end();) {
    it = it.value() < 270 ? std::next(it) : original["model"]["vocab"].erase(it);
  }
  const std::vector<json> others = {nullptr,
                                    1,
                                    "x",
                                    true,
                                    json::array(),
                                    json::object(),
                                    json::array({1}),
                                    json::object({{"type", "Sequence"}})};
  const json flat = original.flatten();
  int refused = 0;
  for (const auto& [pointer, value] : flat.items()) {
    if (pointer.find("/model/vocab/") == 0 || pointer.find("/model/merges/") == 0) continue;
    const json::json_pointer place(pointer);
    for (json::json_pointer at = place; !at.empty(); at = at.parent_pointer()) {
      if (at.to_string() == "/model/vocab" || at.to_string() == "/model/merges") break;
      for (const json& other : others) {
        json root = original;
        root[at] = other;
        try {
          convert_tokenizer_json(root.dump(), "t.json");
        } catch (const Error& error) {
          EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
          ++refused;
        }
      }
    }
  }
  EXPECT_GT(refused, 100);
}

// A folder with this tokenizer.json.
class FolderWithTokenizerJson : public testing::Test {
 protected:
  FolderWithTokenizerJson() {
    source_.write();
    write_bytes(source_.path / "tokenizer.json", root_.dump());
  }

  Checkpoint convert_folder(ConvertOptions options = {}) {
    options.force = true;
    convert(source_.path, source_.folder / "m", options);
    return Checkpoint::open(source_.folder / "m");
  }

  json root_ = base();
  test::HfSource source_;
};

TEST_F(FolderWithTokenizerJson, IsConvertedWithAModelOfTheSameIds) {
  const Checkpoint model = convert_folder();
  EXPECT_EQ(model.tokenizer(), convert_tokenizer_json(root_.dump(), "t.json").model);
  EXPECT_FALSE(model.tokenizer_rules().add_bos);
  EXPECT_FALSE(model.tokenizer_rules().blank_once);
  EXPECT_TRUE(model.tokenizer_rules().blank_after_special);
}

TEST_F(FolderWithTokenizerJson, PutsAroundTextWhatThePostProcessorPuts) {
  root_["post_processor"] = json::parse(
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},
          {"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}]})");
  source_.config["bos_token_id"] = 1;
  source_.config["eos_token_id"] = 2;
  source_.write();
  write_bytes(source_.path / "tokenizer.json", root_.dump());
  EXPECT_TRUE(convert_folder().tokenizer_rules().add_bos);
  EXPECT_TRUE(convert_folder().tokenizer_rules().add_eos);
  write_bytes(source_.path / "tokenizer_config.json",
              R"({"add_bos_token":false,"add_eos_token":false})");
  EXPECT_FALSE(convert_folder().tokenizer_rules().add_bos);
  EXPECT_FALSE(convert_folder().tokenizer_rules().add_eos);
  std::filesystem::remove(source_.path / "tokenizer_config.json");
  source_.config["bos_token_id"] = 3;
  source_.write();
  EXPECT_THAT(error_of([&] { convert_folder(); }),
              HasSubstr("tokenizer.json: puts token 1 in front of text, expected bos_token_id 3"));
}

TEST_F(FolderWithTokenizerJson, GivesWayToTokenizerModelAndToTheOption) {
  write_bytes(source_.path / "tokenizer.json", patched(R"({"model":{"type":"Unigram"}})").dump());
  EXPECT_THAT(error_of([&] { convert_folder(); }),
              HasSubstr("tokenizer.json: a Unigram tokenizer is not supported"));
  write_bytes(source_.folder / "other.model", "other");
  EXPECT_EQ(convert_folder({.tokenizer = source_.folder / "other.model"}).tokenizer(), "other");
  write_bytes(source_.path / "tokenizer.model", "own");
  EXPECT_EQ(convert_folder().tokenizer(), "own");
  EXPECT_EQ(convert_folder({.tokenizer = source_.folder / "other.model"}).tokenizer(), "other");
  write_bytes(source_.folder / "other.model", "");
  EXPECT_THAT(error_of([&] { convert_folder({.tokenizer = source_.folder / "other.model"}); }),
              HasSubstr("other.model: empty, expected a sentencepiece model"));
}

TEST_F(FolderWithTokenizerJson, KeepsItsRulesInTheCheckpoint) {
  root_.merge_patch(json::parse("{" + kMetaspace + R"(,"prepend_scheme":"first","split":false}})"));
  write_bytes(source_.path / "tokenizer.json", root_.dump());
  const Checkpoint model = convert_folder();
  EXPECT_TRUE(model.tokenizer_rules().blank_once);
  EXPECT_FALSE(model.tokenizer_rules().blank_after_special);
}

}  // namespace
}  // namespace gsa
