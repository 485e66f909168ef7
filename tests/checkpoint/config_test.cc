#include "checkpoint/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"

namespace gsa {
namespace {

using nlohmann::json;
using test::error_of;
using testing::ElementsAre;
using testing::IsEmpty;

json minimal() {
  return {{"hidden_size", 64}, {"num_hidden_layers", 2}, {"num_heads", 4}, {"vocab_size", 512}};
}

GsaConfig parse(const json& config) { return parse_hf_config(config.dump(), "config.json"); }

GsaConfig parse_with(const json& changes) {
  json config = minimal();
  config.update(changes);
  return parse(config);
}

std::string error_with(const json& changes) {
  return error_of([&] { parse_with(changes); });
}

TEST(HfConfig, FillsInTheDefaultsOfTheTrainingLibrary) {
  const GsaConfig c = parse(minimal());
  EXPECT_EQ(c.hidden_size, 64);
  EXPECT_EQ(c.num_layers, 2);
  EXPECT_EQ(c.vocab_size, 512);
  EXPECT_EQ(c.intermediate_size, 256);
  EXPECT_EQ(c.num_heads, 4);
  EXPECT_EQ(c.num_kv_heads, 4);
  EXPECT_EQ(c.key_dim, 16);
  EXPECT_EQ(c.value_dim, 16);
  EXPECT_EQ(c.num_slots, 64);
  EXPECT_EQ(c.feature_map, FeatureMap::kSwish);
  EXPECT_EQ(c.gate_logit_normalizer, 8);
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_EQ(c.conv_size, 0);
  EXPECT_TRUE(c.elementwise_affine);
  EXPECT_FALSE(c.tie_word_embeddings);
  EXPECT_EQ(c.bos_token_id, 1);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(2));
}

TEST(HfConfig, ReadsNullAsTheTrainingLibraryDoes) {
  const GsaConfig c = parse_with({{"num_slots", nullptr},
                                  {"num_kv_heads", nullptr},
                                  {"gate_logit_normalizer", nullptr},
                                  {"hidden_ratio", nullptr},
                                  {"intermediate_size", nullptr},
                                  {"bos_token_id", nullptr},
                                  {"eos_token_id", nullptr},
                                  {"attn", nullptr},
                                  {"attnres_block_size", nullptr}});
  EXPECT_EQ(c.num_slots, 16);
  EXPECT_EQ(c.num_kv_heads, 4);
  EXPECT_EQ(c.gate_logit_normalizer, 8);
  EXPECT_EQ(c.intermediate_size, 256);
  EXPECT_EQ(c.bos_token_id, -1);
  EXPECT_THAT(c.eos_token_ids, IsEmpty());
}

TEST(HfConfig, ReadsEveryField) {
  const GsaConfig c = parse_with({{"model_type", "gsa"},
                                  {"num_kv_heads", 2},
                                  {"expand_k", 0.5},
                                  {"expand_v", 2},
                                  {"num_slots", 24},
                                  {"intermediate_size", 100},
                                  {"feature_map", "t2r"},
                                  {"gate_logit_normalizer", 16.5},
                                  {"norm_eps", 1e-5},
                                  {"use_short_conv", true},
                                  {"conv_size", 3},
                                  {"elementwise_affine", false},
                                  {"tie_word_embeddings", true},
                                  {"bos_token_id", 5},
                                  {"eos_token_id", {7, 8}},
                                  {"hidden_act", "silu"},
                                  {"some_future_field", {{"x", 1}}}});
  EXPECT_EQ(c.num_kv_heads, 2);
  EXPECT_EQ(c.key_dim, 8);
  EXPECT_EQ(c.value_dim, 32);
  EXPECT_EQ(c.num_slots, 24);
  EXPECT_EQ(c.intermediate_size, 100);
  EXPECT_EQ(c.feature_map, FeatureMap::kT2R);
  EXPECT_EQ(c.gate_logit_normalizer, 16.5);
  EXPECT_EQ(c.norm_eps, 1e-5);
  EXPECT_EQ(c.conv_size, 3);
  EXPECT_FALSE(c.elementwise_affine);
  EXPECT_TRUE(c.tie_word_embeddings);
  EXPECT_EQ(c.bos_token_id, 5);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(7, 8));
}

TEST(HfConfig, RoundsTheDefaultIntermediateSizeUpToAMultipleOf256) {
  EXPECT_EQ(parse_with({{"hidden_size", 96}}).intermediate_size, 256);   // 256 exactly
  EXPECT_EQ(parse_with({{"hidden_size", 100}}).intermediate_size, 512);  // 266
  EXPECT_EQ(parse_with({{"hidden_size", 2048}}).intermediate_size, 5632);
  EXPECT_EQ(parse_with({{"hidden_size", 2048}, {"hidden_ratio", 3.5}}).intermediate_size, 4864);
}

TEST(HfConfig, TakesNoDefaultTokenBeyondTheVocabulary) {
  const GsaConfig c = parse_with({{"vocab_size", 2}});
  EXPECT_EQ(c.bos_token_id, 1);
  EXPECT_THAT(c.eos_token_ids, IsEmpty());
}

TEST(HfConfig, ReadsThePublishedSizes) {
  const auto read = [](const std::string& name) {
    return parse_hf_config(test::read_bytes(GSA_SOURCE_DIR "/models/configs/" + name), name);
  };
  EXPECT_EQ(read("gsa-1.3b.json").parameters(), 1'376'929'792);
  EXPECT_EQ(read("gsa-1.3b.json").key_dim, 512);
  EXPECT_EQ(read("gsa-2.7b.json").num_heads, 5);
  EXPECT_EQ(read("gsa-7b-mistral.json").state_bytes(), int64_t{16} << 20);
  EXPECT_EQ(read("gsa-7b-mistral.json").k_rows(), 1024);
}

TEST(HfConfig, CountsStateAndParametersExactly) {
  const GsaConfig c = parse_with({{"num_kv_heads", 2},
                                  {"num_slots", 8},
                                  {"use_short_conv", true},
                                  {"conv_size", 4},
                                  {"intermediate_size", 10},
                                  {"feature_map", "t2r"}});
  EXPECT_EQ(c.qkvf_rows(), 64 + 32 + 32 + 16);
  EXPECT_EQ(c.conv_channels(), 128);
  EXPECT_EQ(c.state_bytes(), 2 * (2 * 8 * 32 + 3 * 128) * 4);
  EXPECT_EQ(
      c.parameters(),
      2 * 512 * 64 + 64 + 2 * (144 * 64 + 128 * 4 + 16 * 16 + 64 + 64 * 64 + 2 * 64 + 3 * 10 * 64));
}

TEST(HfConfig, NamesAMissingField) {
  for (const char* field : {"hidden_size", "num_hidden_layers", "num_heads", "vocab_size"}) {
    json config = minimal();
    config.erase(field);
    EXPECT_EQ(error_of([&] { parse(config); }),
              std::string("config.json: field \"") + field + "\" is missing");
  }
}

TEST(HfConfig, NamesAMistypedField) {
  EXPECT_EQ(error_with({{"hidden_size", "64"}}),
            "config.json: field \"hidden_size\" is \"64\", expected an integer of 1 to 262144");
  EXPECT_EQ(error_with({{"num_heads", 4.0}}),
            "config.json: field \"num_heads\" is 4.0, expected an integer of 1 to 16384");
  EXPECT_EQ(error_with({{"num_heads", nullptr}}),
            "config.json: field \"num_heads\" is null, expected an integer of 1 to 16384");
  EXPECT_EQ(error_with({{"use_short_conv", 1}}),
            "config.json: field \"use_short_conv\" is 1, expected true or false");
  EXPECT_EQ(error_with({{"feature_map", 3}}),
            "config.json: field \"feature_map\" is 3, expected a string");
  EXPECT_EQ(error_with({{"norm_eps", "small"}}),
            "config.json: field \"norm_eps\" is \"small\", expected a number of 1e-30 to 1");
  EXPECT_EQ(error_with({{"eos_token_id", {2, "x"}}}),
            "config.json: field \"eos_token_id\" holds \"x\", expected integers of 0 to 511");
  EXPECT_EQ(error_with({{"tie_word_embeddings", nullptr}}),
            "config.json: field \"tie_word_embeddings\" is null, expected true or false");
}

TEST(HfConfig, NamesAFieldOutOfRange) {
  const std::pair<json, const char*> cases[] = {
      {{{"num_heads", 0}}, "field \"num_heads\" is 0, expected an integer of 1 to 16384"},
      {{{"num_heads", -4}}, "field \"num_heads\" is -4, expected an integer of 1 to 16384"},
      {{{"num_hidden_layers", 0}},
       "field \"num_hidden_layers\" is 0, expected an integer of 1 to 4096"},
      {{{"vocab_size", 0}}, "field \"vocab_size\" is 0, expected an integer of 1 to 16777216"},
      {{{"hidden_size", int64_t{1} << 40}},
       "field \"hidden_size\" is 1099511627776, expected an integer of 1 to 262144"},
      {{{"num_kv_heads", 0}}, "field \"num_kv_heads\" is 0, expected an integer of 1 to 16384"},
      {{{"num_kv_heads", 3}}, "field \"num_kv_heads\" is 3, expected a divisor of num_heads, 4"},
      {{{"num_kv_heads", 8}}, "field \"num_kv_heads\" is 8, expected a divisor of num_heads, 4"},
      {{{"num_slots", 0}}, "field \"num_slots\" is 0, expected an integer of 1 to 65536"},
      {{{"intermediate_size", 0}},
       "field \"intermediate_size\" is 0, expected an integer of 1 to 1048576"},
      {{{"gate_logit_normalizer", 0}},
       "field \"gate_logit_normalizer\" is 0, expected a number of 1e-06 to 1000000"},
      {{{"gate_logit_normalizer", -8}},
       "field \"gate_logit_normalizer\" is -8, expected a number of 1e-06 to 1000000"},
      {{{"norm_eps", 0}}, "field \"norm_eps\" is 0, expected a number of 1e-30 to 1"},
      {{{"norm_eps", -1e-6}}, "field \"norm_eps\" is -1e-06, expected a number of 1e-30 to 1"},
      {{{"use_short_conv", true}, {"conv_size", 0}},
       "field \"conv_size\" is 0, expected an integer of 1 to 256"},
      {{{"bos_token_id", 512}}, "field \"bos_token_id\" is 512, expected an integer of 0 to 511"},
      {{{"eos_token_id", -1}}, "field \"eos_token_id\" is -1, expected an integer of 0 to 511"},
      {{{"feature_map", "elu"}}, "field \"feature_map\" is \"elu\", expected swish, relu or t2r"},
  };
  for (const auto& [changes, message] : cases) {
    EXPECT_EQ(error_with(changes), std::string("config.json: ") + message);
  }
}

TEST(HfConfig, RefusesNumbersThatAreNotFinite) {
  for (const char* value : {"NaN", "Infinity", "-Infinity"}) {
    const std::string text = std::string("{\"norm_eps\": ") + value + "}";
    EXPECT_THAT(error_of([&] { parse_hf_config(text, "config.json"); }),
                testing::StartsWith("config.json: not valid JSON at line 1"));
  }
  EXPECT_EQ(error_of([] { parse_hf_config("{\"norm_eps\": 1e999}", "config.json"); }),
            "config.json: not valid JSON: a number is too large");
}

TEST(HfConfig, RefusesWidthsThatHeadsDoNotDivide) {
  EXPECT_EQ(error_with({{"hidden_size", 66}}),
            "config.json: hidden_size 66 and expand_k 1 give a width of 66, expected a multiple of "
            "num_heads, 4, of at most 1048576");
  EXPECT_EQ(error_with({{"expand_v", 0.4}}),
            "config.json: hidden_size 64 and expand_v 0.4 give a width of 25, expected a multiple "
            "of num_heads, 4, of at most 1048576");
  EXPECT_EQ(error_with({{"expand_k", 1e-3}}),
            "config.json: hidden_size 64 and expand_k 0.001 give a width of 0, expected a multiple "
            "of num_heads, 4, of at most 1048576");
}

TEST(HfConfig, RefusesHeadsTimesKeyDimTooLarge) {
  EXPECT_EQ(error_with({{"hidden_size", 262144}, {"expand_k", 8}}),
            "config.json: hidden_size 262144 and expand_k 8 give a width of 2097152, expected a "
            "multiple of num_heads, 4, of at most 1048576");
  EXPECT_EQ(error_with({{"hidden_size", 16384}, {"num_heads", 16384}, {"num_slots", 65536}}),
            "config.json: num_kv_heads times num_slots make 1073741824, expected at most 1048576");
}

TEST(HfConfig, RefusesByNameWhatItDoesNotRun) {
  EXPECT_EQ(error_with({{"attn", {{"layers", {1}}, {"num_heads", 4}}}}),
            "config.json: field \"attn\" is an object, expected null: hybrid models with softmax "
            "attention layers are not supported");
  EXPECT_EQ(
      error_with({{"attnres_block_size", 4}}),
      "config.json: field \"attnres_block_size\" is 4, expected null: attention residuals are "
      "not supported");
  EXPECT_EQ(error_with({{"model_type", "gla"}}),
            "config.json: field \"model_type\" is \"gla\", expected gsa");
  EXPECT_EQ(error_with({{"hidden_act", "gelu"}}),
            "config.json: field \"hidden_act\" is \"gelu\", expected swish or silu");
}

TEST(HfConfig, RefusesBrokenJson) {
  EXPECT_EQ(error_of([] { parse_hf_config("[]", "config.json"); }),
            "config.json: expected a JSON object, found a list");
  EXPECT_EQ(error_of([] { parse_hf_config(R"({"num_heads":4,"num_heads":8})", "config.json"); }),
            "config.json: \"num_heads\" appears twice in one JSON object");
  const std::string deep = "{\"attn\":" + std::string(1000, '[') + std::string(1000, ']') + "}";
  EXPECT_EQ(error_of([&] { parse_hf_config(deep, "config.json"); }),
            "config.json: JSON is nested deeper than 32 levels");
}

TEST(NormalizedConfig, ReadsBackWhatItWrote) {
  const GsaConfig c = parse_with({{"norm_eps", 1.1e-7},
                                  {"gate_logit_normalizer", 1.0 / 3},
                                  {"num_kv_heads", 1},
                                  {"use_short_conv", true},
                                  {"bos_token_id", nullptr},
                                  {"eos_token_id", {3, 2}}});
  EXPECT_EQ(parse_normalized_config(normalized_config(c), "n"), c);
}

TEST(NormalizedConfig, IsTheSameForConfigsThatMeanTheSame) {
  EXPECT_EQ(normalized_config(parse(minimal())),
            normalized_config(parse_with({{"num_kv_heads", 4},
                                          {"expand_k", 1.0},
                                          {"num_slots", 64},
                                          {"conv_size", 7},
                                          {"eos_token_id", {2}}})));
}

TEST(NormalizedConfig, RefusesMissingUnknownAndWrongFields) {
  const json good = json::parse(normalized_config(parse(minimal())));
  const auto error = [](const json& config) {
    return error_of([&] { parse_normalized_config(config.dump(), "n"); });
  };
  for (const auto& item : good.items()) {
    json config = good;
    config.erase(item.key());
    EXPECT_EQ(error(config), "n: field \"" + item.key() + "\" is missing");
  }
  json config = good;
  config["new_field"] = 1;
  EXPECT_EQ(error(config), "n: unknown field \"new_field\"");
  config = good;
  config["num_heads"] = 0;
  EXPECT_EQ(error(config), "n: field \"num_heads\" is 0, expected an integer of 1 to 16384");
  config = good;
  config["num_kv_heads"] = 3;
  EXPECT_EQ(error(config), "n: field \"num_kv_heads\" is 3, expected a divisor of num_heads, 4");
  config = good;
  config["key_dim"] = 1 << 20;
  EXPECT_EQ(error(config), "n: num_heads times the key dim make 4194304, expected at most 1048576");
  config = good;
  config["eos_token_ids"] = 2;
  EXPECT_EQ(error(config), "n: field \"eos_token_ids\" is 2, expected a list of integers");
}

}  // namespace
}  // namespace gsa
