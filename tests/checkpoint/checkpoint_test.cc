#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/convert.h"
#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"

namespace gsa {
namespace {

using test::error_of;
using test::fixture;
using test::TemporaryFolder;

// A converted fixture taken apart, to be changed and written again.
class CheckpointTest : public testing::Test {
 protected:
  struct Tensor {
    SafetensorsWriter::Entry entry;
    std::string bytes;
  };

  void load(const std::string& fixture_name) {
    convert(fixture(fixture_name), folder_ / "good", {.force = true});
    const SafetensorsFile file = SafetensorsFile::open(folder_ / "good");
    metadata_ = file.metadata();
    tensors_.clear();
    for (const auto& [name, view] : file.tensors()) {
      tensors_.push_back({{name, view.dtype, {view.shape.begin(), view.shape.begin() + view.rank}},
                          std::string(static_cast<const char*>(view.data), view.bytes())});
    }
    std::sort(tensors_.begin(), tensors_.end(), [&](const Tensor& a, const Tensor& b) {
      return file.tensor(a.entry.name).data < file.tensor(b.entry.name).data;
    });
  }

  Tensor& tensor(const std::string& name) {
    for (Tensor& t : tensors_) {
      if (t.entry.name == name) return t;
    }
    throw std::runtime_error("no tensor " + name);
  }

  void erase(const std::string& name) {
    std::erase_if(tensors_, [&](const Tensor& t) { return t.entry.name == name; });
  }

  std::string path() const { return (folder_ / "m.gsa").string(); }

  Checkpoint open() {
    std::vector<SafetensorsWriter::Entry> entries;
    for (const Tensor& t : tensors_) entries.push_back(t.entry);
    SafetensorsWriter writer(path(), entries, metadata_);
    for (const Tensor& t : tensors_) writer.write(t.bytes.data(), t.bytes.size());
    writer.finish();
    return Checkpoint::open(path());
  }

  // What open() throws, without the file's name.
  std::string error() {
    const std::string text = error_of([&] { open(); });
    EXPECT_THAT(text, testing::StartsWith(path() + ": "));
    return text.substr(std::min(text.size(), path().size() + 2));
  }

  TemporaryFolder folder_;
  std::map<std::string, std::string> metadata_;
  std::vector<Tensor> tensors_;
};

TEST_F(CheckpointTest, OpensWhatWasWrittenAgainUnchanged) {
  load("conv");
  EXPECT_EQ(open().type(), "bf16");
}

TEST_F(CheckpointTest, RefusesAHuggingFaceFolderWithTheCommandThatConvertsIt) {
  const std::string base = fixture("base").string();
  EXPECT_EQ(
      error_of([&] { Checkpoint::open(base); }),
      base + ": a folder, expected a checkpoint; convert it first: gsa convert " + base + " FILE");
}

TEST_F(CheckpointTest, RefusesAFileThatWasNotConverted) {
  const std::string file = (fixture("base") / "model.safetensors").string();
  EXPECT_EQ(
      error_of([&] { Checkpoint::open(file); }),
      file + ": not a converted checkpoint; convert its folder first: gsa convert FOLDER FILE");
}

TEST_F(CheckpointTest, RefusesASnapshot) {
  metadata_ = {{"gsa.snapshot", "1"}};
  EXPECT_EQ(error(), "a snapshot, expected a checkpoint");
}

TEST_F(CheckpointTest, RefusesAnotherFormatVersion) {
  load("base");
  metadata_["gsa.format"] = "2";
  EXPECT_EQ(error(), "metadata gsa.format is 2, expected 1");
}

TEST_F(CheckpointTest, NamesMissingMetadata) {
  for (const char* key : {"gsa.config", "gsa.type", "gsa.fingerprint", "gsa.tokenizer_rules"}) {
    load("base");
    metadata_.erase(key);
    EXPECT_EQ(error(), std::string("metadata ") + key + " is missing");
  }
}

TEST_F(CheckpointTest, NamesWrongMetadata) {
  load("base");
  const auto good = metadata_;
  metadata_["gsa.type"] = "q3";
  EXPECT_EQ(error(), "metadata gsa.type is q3, expected f32, f16, bf16, q8 or q4");
  metadata_ = good;
  metadata_["gsa.fingerprint"] = "xyz";
  EXPECT_EQ(error(), "metadata gsa.fingerprint is xyz, expected 16 hexadecimal digits");
  metadata_ = good;
  metadata_["gsa.tokenizer_rules"] = R"({"add_bos":1,"add_eos":false})";
  EXPECT_EQ(error(),
            "metadata gsa.tokenizer_rules: field \"add_bos\" is 1, expected true or false");
  metadata_ = good;
  metadata_["gsa.config"] = "{";
  EXPECT_EQ(error(), "metadata gsa.config: not valid JSON at line 1, column 2");
}

TEST_F(CheckpointTest, NamesAMissingTensor) {
  for (const char* name : {"embeddings", "layers.1.qkvf", "layers.0.conv", "norm", "lm_head"}) {
    load("conv");
    erase(name);
    EXPECT_EQ(error(), std::string("tensor ") + name + " is missing");
  }
}

TEST_F(CheckpointTest, NamesASuperfluousTensor) {
  load("base");
  const std::string bytes(64, '\0');
  tensors_.push_back({{"layers.2.attn_norm", DType::kU8, {64}}, bytes});
  EXPECT_EQ(error(), "tensor layers.2.attn_norm belongs to no model of this config");
  // Fillers are small U8 tensors of their own name and nothing else.
  for (const char* name : {"gsa.pad.0", "gsa.pad.", "gsa.pad.x"}) {
    tensors_.back().entry.name = name;
    EXPECT_EQ(error(), fmt::format("tensor {} belongs to no model of this config", name));
  }
  tensors_.back() = {{"gsa.pad.0", DType::kU8, {63}}, std::string(63, '\0')};
  EXPECT_NO_THROW(open());
  tensors_.back() = {{"tokenizer", DType::kF32, {16}}, bytes};
  EXPECT_EQ(error(), "tensor tokenizer is f32 [16], expected u8 of one dimension");
}

TEST_F(CheckpointTest, NamesATensorOfTheWrongShapeOrType) {
  load("base");
  tensor("layers.0.o_proj").entry.shape = {32, 128};
  EXPECT_EQ(error(), "tensor layers.0.o_proj is f32 [32, 128], expected f32 [64, 64]");
  tensor("layers.0.o_proj").entry = {"layers.0.o_proj", DType::kI32, {64, 64}};
  EXPECT_EQ(error(), "tensor layers.0.o_proj is i32 [64, 64], expected f32 [64, 64]");
  tensor("layers.0.o_proj").entry.dtype = DType::kF32;
  metadata_["gsa.type"] = "bf16";
  EXPECT_EQ(error(), "tensor embeddings is f32 [512, 64], expected bf16 [512, 64]");
}

TEST_F(CheckpointTest, NamesATensorThatIsNotAligned) {
  load("base");
  tensors_.insert(tensors_.begin(), {{"gsa.pad.0", DType::kU8, {32}}, std::string(32, '\0')});
  EXPECT_EQ(error(), "tensor embeddings does not begin at a multiple of 64 bytes");
}

TEST_F(CheckpointTest, UsesTheEmbeddingsAsHeadWhereTied) {
  const Checkpoint model = Checkpoint::open(GSA_SOURCE_DIR "/models/tale-10m.safetensors");
  EXPECT_EQ(model.weights().lm_head.data, model.weights().embeddings.data);
}

}  // namespace
}  // namespace gsa
