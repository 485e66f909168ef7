#include "checkpoint/hf_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"

namespace gsa {
namespace {

using test::error_of;
using test::fixture;
using test::HfSource;
using test::write_bytes;
using testing::ElementsAre;

std::string open_error(const std::filesystem::path& path) {
  return error_of([&] { HfFolder::open(path); });
}

TEST(HfFolder, OpensEveryFixture) {
  for (const char* name : {"base", "conv", "expand", "gqa", "legacy", "relu", "t2r", "wide"}) {
    SCOPED_TRACE(name);
    const HfFolder folder = HfFolder::open(fixture(name));
    EXPECT_EQ(folder.stacked_gate(), std::string(name) == "legacy");
    EXPECT_TRUE(folder.tokenizer().empty());
    EXPECT_FALSE(folder.tokenizer_rules().add_bos);
    EXPECT_EQ(shape_string(folder.tensor("model.embeddings.weight")),
              fmt::format("[{}, {}]", folder.config().vocab_size, folder.config().hidden_size));
  }
}

TEST(HfFolder, TellsTheTypeOfTheMatrices) {
  EXPECT_EQ(HfFolder::open(fixture("base")).type(), DType::kF32);
  EXPECT_EQ(HfFolder::open(fixture("t2r")).type(), DType::kF16);
  EXPECT_EQ(HfFolder::open(fixture("gqa")).type(), DType::kBF16);
}

TEST(HfFolder, TakesTheWidestTypeWhereMatricesDiffer) {
  HfSource source("gqa");
  source.put_zeros("model.norm.weight", DType::kF32, {128});
  EXPECT_EQ(HfFolder::open(source.write()).type(), DType::kBF16);
  source.put_zeros("lm_head.weight", DType::kF16, {512, 128});
  EXPECT_EQ(HfFolder::open(source.write()).type(), DType::kF32);
  source.put_zeros("lm_head.weight", DType::kF32, {512, 128});
  EXPECT_EQ(HfFolder::open(source.write()).type(), DType::kF32);
}

TEST(HfFolder, SaysWhatIsNoHuggingFaceFolder) {
  const test::TemporaryFolder folder;
  const std::string path = folder.path().string();
  EXPECT_EQ(open_error(folder / "none"), path + "/none: no such folder");
  EXPECT_EQ(open_error(folder.path()),
            path + ": has no config.json, expected a folder as save_pretrained writes it");
  write_bytes(folder / "file", "x");
  EXPECT_EQ(
      open_error(folder / "file"),
      path + "/file: a file, expected a Hugging Face folder (config.json, model.safetensors, ...)");
}

TEST(HfFolder, SaysWhatToDoWithPyTorchWeights) {
  HfSource source;
  const std::string path = source.write().string();
  std::filesystem::remove(source.path / "model.safetensors");
  EXPECT_EQ(open_error(path),
            path + ": has neither model.safetensors nor model.safetensors.index.json");
  write_bytes(source.path / "pytorch_model.bin", "x");
  EXPECT_EQ(open_error(path), path +
                                  ": holds PyTorch weights only; save the model again with "
                                  "save_pretrained(FOLDER, safe_serialization=True)");
}

TEST(HfFolder, NamesTheConfigInItsErrors) {
  HfSource source;
  source.config["num_heads"] = 0;
  const std::string path = source.write().string();
  EXPECT_EQ(open_error(path),
            path + "/config.json: field \"num_heads\" is 0, expected an integer of 1 to 16384");
}

TEST(HfFolder, NamesAMissingTensor) {
  for (const char* name :
       {"model.embeddings.weight", "model.layers.1.attn.f_proj.weight", "lm_head.weight",
        "model.layers.0.attn.g_norm.weight", "model.layers.0.mlp.up_proj.weight"}) {
    HfSource source;
    source.tensors.erase(name);
    const std::string path = source.write().string();
    EXPECT_EQ(open_error(path), path + "/model.safetensors: tensor " + name + " is missing");
  }
}

TEST(HfFolder, NamesASuperfluousTensor) {
  HfSource source;
  source.put_zeros("model.layers.2.attn_norm.weight", DType::kF32, {64});
  const std::string path = source.write().string();
  EXPECT_EQ(open_error(path), path +
                                  "/model.safetensors: tensor model.layers.2.attn_norm.weight "
                                  "belongs to no model of this config.json");
}

TEST(HfFolder, NamesATensorOfTheWrongShapeOrType) {
  HfSource source;
  const auto original = source.tensors;
  const std::string name = "model.layers.0.attn.q_proj.weight";
  const std::string path = source.path.string() + "/model.safetensors: tensor " + name;
  source.put_zeros(name, DType::kF32, {64, 32});
  EXPECT_EQ(open_error(source.write()),
            path + " has shape [64, 32], expected [64, 64] by config.json");
  source.put_zeros(name, DType::kF32, {4096});
  EXPECT_EQ(open_error(source.write()),
            path + " has shape [4096], expected [64, 64] by config.json");
  source.put_zeros(name, DType::kF64, {64, 64});
  EXPECT_EQ(open_error(source.write()), path + " is f64, expected f32, f16 or bf16");
}

TEST(HfFolder, HoldsTheConvolutionToItsShape) {
  HfSource source("conv");
  source.config["conv_size"] = 3;
  EXPECT_EQ(open_error(source.write()),
            source.path.string() +
                "/model.safetensors: tensor model.layers.0.attn.q_conv1d.weight has shape "
                "[64, 1, 4], expected [64, 1, 3] by config.json");
}

TEST(HfFolder, NeedsNoOutputNormWhereTheConfigHasNone) {
  HfSource source;
  source.config["elementwise_affine"] = false;
  for (const char* layer : {"0", "1"}) {
    source.tensors.erase(std::string("model.layers.") + layer + ".attn.g_norm.weight");
  }
  EXPECT_FALSE(HfFolder::open(source.write()).config().elementwise_affine);
}

TEST(HfFolder, AllowsTheHeadOfATiedModelToBeThereOrNot) {
  HfSource source;
  source.config["tie_word_embeddings"] = true;
  EXPECT_NO_THROW(HfFolder::open(source.write()));
  source.tensors.erase("lm_head.weight");
  EXPECT_NO_THROW(HfFolder::open(source.write()));
}

TEST(HfFolder, RefusesAMixOfStackedAndSeparateGates) {
  HfSource source("legacy");
  source.put_zeros("model.layers.1.mlp.gate_proj.weight", DType::kBF16, {128, 128});
  source.put_zeros("model.layers.1.mlp.up_proj.weight", DType::kBF16, {128, 128});
  EXPECT_THAT(open_error(source.write()),
              testing::HasSubstr("tensor model.layers.1.mlp.gate_proj.weight has shape"));
}

// Shards ---------------------------------------------------------------------------------------

// A model in two shards with an index.
class ShardedSource : public HfSource {
 public:
  ShardedSource() {
    write();
    std::filesystem::remove(path / "model.safetensors");
    HfSource first, second;
    for (const auto& [name, tensor] : tensors) {
      const bool in_first = name < "model.layers.1";
      (in_first ? second : first).tensors.erase(name);
      index["weight_map"][name] = in_first ? "a.safetensors" : "b.safetensors";
    }
    first.write_weights(path / "a.safetensors");
    second.write_weights(path / "b.safetensors");
    write_index();
  }
  void write_index() const { write_bytes(path / "model.safetensors.index.json", index.dump()); }
  std::string index_name() const { return (path / "model.safetensors.index.json").string(); }

  nlohmann::json index;
};

TEST(HfFolder, ReadsShards) {
  const ShardedSource source;
  const HfFolder folder = HfFolder::open(source.path);
  EXPECT_EQ(folder.tensors().size(), source.tensors.size());
}

TEST(HfFolder, NamesAMissingShard) {
  const ShardedSource source;
  std::filesystem::remove(source.path / "b.safetensors");
  EXPECT_EQ(open_error(source.path), (source.path / "b.safetensors").string() +
                                         ": cannot be opened: No such file or directory");
}

TEST(HfFolder, NamesAShardThatDisagreesWithTheIndex) {
  ShardedSource source;
  source.index["weight_map"]["model.norm.weight"] = "a.safetensors";
  source.write_index();
  EXPECT_EQ(open_error(source.path),
            (source.path / "a.safetensors").string() +
                ": tensor model.norm.weight is missing, though model.safetensors.index.json puts "
                "it there");
  source.index["weight_map"].erase("model.norm.weight");
  source.write_index();
  EXPECT_EQ(open_error(source.path),
            (source.path / "b.safetensors").string() +
                ": tensor model.norm.weight is not in model.safetensors.index.json");
}

TEST(HfFolder, RefusesATensorInTwoShards) {
  ShardedSource source;
  HfSource both;
  both.write_weights(source.path / "b.safetensors");
  EXPECT_EQ(open_error(source.path), (source.path / "b.safetensors").string() +
                                         ": tensor lm_head.weight belongs into a.safetensors, says "
                                         "model.safetensors.index.json");
}

TEST(HfFolder, RefusesAnIndexThatLeavesTheFolder) {
  ShardedSource source;
  source.index["weight_map"]["model.norm.weight"] = "../b.safetensors";
  source.write_index();
  EXPECT_EQ(open_error(source.path),
            source.index_name() +
                ": weight_map: field \"model.norm.weight\" is \"../b.safetensors\", expected the "
                "name of a file in the folder");
}

TEST(HfFolder, NamesABrokenIndex) {
  const ShardedSource source;
  write_bytes(source.index_name(), "{}");
  EXPECT_EQ(open_error(source.path), source.index_name() + ": field \"weight_map\" is missing");
  write_bytes(source.index_name(), R"({"weight_map":{"a":1}})");
  EXPECT_EQ(open_error(source.path),
            source.index_name() + ": weight_map: field \"a\" is 1, expected a string");
}

// Tokenizer ------------------------------------------------------------------------------------

TEST(HfFolder, AddsBosByDefaultWhereThereIsASentencepieceModel) {
  HfSource source;
  source.write();
  write_bytes(source.path / "tokenizer.model", "model bytes");
  const HfFolder folder = HfFolder::open(source.path);
  EXPECT_EQ(folder.tokenizer(), "model bytes");
  EXPECT_TRUE(folder.tokenizer_rules().add_bos);
  EXPECT_FALSE(folder.tokenizer_rules().add_eos);
}

TEST(HfFolder, ReadsTheTokenizersRules) {
  HfSource source;
  source.write();
  write_bytes(source.path / "tokenizer.model", "model bytes");
  const auto rules = [&](const std::string& json) {
    write_bytes(source.path / "tokenizer_config.json", json);
    return HfFolder::open(source.path).tokenizer_rules();
  };
  EXPECT_TRUE(rules("{}").add_bos);
  EXPECT_TRUE(rules(R"({"add_bos_token":null,"add_eos_token":null})").add_bos);
  EXPECT_FALSE(rules(R"({"add_bos_token":false})").add_bos);
  EXPECT_TRUE(rules(R"({"add_eos_token":true})").add_eos);
  EXPECT_TRUE(rules(R"({"legacy":true})").blank_after_special);
  EXPECT_FALSE(rules(R"({"legacy":false})").blank_after_special);
  EXPECT_EQ(error_of([&] { rules(R"({"add_bos_token":"yes"})"); }),
            (source.path / "tokenizer_config.json").string() +
                ": field \"add_bos_token\" is \"yes\", expected true or false");
}

TEST(HfFolder, FindsTheChatTemplate) {
  HfSource source;
  source.write();
  const auto chat_template = [&](const std::string& json) {
    write_bytes(source.path / "tokenizer_config.json", json);
    return HfFolder::open(source.path).chat_template();
  };
  EXPECT_EQ(chat_template("{}"), "");
  EXPECT_EQ(chat_template(R"({"chat_template":"{{ x }}"})"), "{{ x }}");
  EXPECT_EQ(chat_template(R"({"chat_template":[{"name":"tool","template":"t"},)"
                          R"({"name":"default","template":"d"}]})"),
            "d");
  EXPECT_EQ(chat_template(R"({"chat_template":[{"name":"tool","template":"t"}]})"), "");
  const std::string name = (source.path / "tokenizer_config.json").string();
  EXPECT_EQ(
      error_of([&] { chat_template(R"({"chat_template":1})"); }),
      name + ": field \"chat_template\" is 1, expected a string or a list of named templates");
  EXPECT_EQ(error_of([&] { chat_template(R"({"chat_template":[{"name":"default"}]})"); }),
            name + ": field \"chat_template\": field \"template\" is missing");
  write_bytes(source.path / "chat_template.jinja", "from the file");
  EXPECT_EQ(chat_template(R"({"chat_template":"{{ x }}"})"), "from the file");
}

TEST(HfFolder, LetsTheGenerationConfigHaveTheLastWordOnBosAndEos) {
  HfSource source;
  source.write();
  const auto config = [&](const std::string& json) {
    write_bytes(source.path / "generation_config.json", json);
    return HfFolder::open(source.path).config();
  };
  EXPECT_THAT(config("{}").eos_token_ids, ElementsAre(2));
  EXPECT_THAT(config(R"({"eos_token_id":null})").eos_token_ids, ElementsAre(2));
  EXPECT_THAT(config(R"({"eos_token_id":7})").eos_token_ids, ElementsAre(7));
  EXPECT_THAT(config(R"({"eos_token_id":[7,9]})").eos_token_ids, ElementsAre(7, 9));
  EXPECT_EQ(config(R"({"bos_token_id":5})").bos_token_id, 5);
  EXPECT_EQ(error_of([&] { config(R"({"eos_token_id":512})"); }),
            (source.path / "generation_config.json").string() +
                ": field \"eos_token_id\" is 512, expected an integer of 0 to 511");
}

}  // namespace
}  // namespace gsa
