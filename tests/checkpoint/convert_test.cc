#include "checkpoint/convert.h"

#include <cmath>
#include <limits>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/checkpoint.h"
#include "kernels/half.h"
#include "tests/support/error_of.h"
#include "tests/support/hf_source.h"

namespace gsa {
namespace {

using test::error_of;
using test::fixture;
using test::HfSource;
using test::read_bytes;
using test::TemporaryFolder;
using test::write_bytes;
using testing::ElementsAre;
using testing::IsEmpty;

const char* const kFixtures[] = {"base", "conv", "expand", "gqa", "legacy", "relu", "t2r", "wide"};

std::vector<float> floats(const TensorView& view) {
  std::vector<float> values(view.elements());
  for (size_t i = 0; i < values.size(); ++i) {
    const char* at = static_cast<const char*>(view.data) + i * dtype_bytes(view.dtype);
    uint16_t half;
    std::memcpy(&half, at, sizeof(half));
    if (view.dtype == DType::kF32) {
      std::memcpy(&values[i], at, sizeof(float));
    } else {
      values[i] = view.dtype == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
    }
  }
  return values;
}

// The values of source tensors, one after the other.
std::vector<float> joined(const SafetensorsFile& source, const std::string& prefix,
                          const std::vector<std::string>& names) {
  std::vector<float> all;
  for (const std::string& name : names) {
    const std::vector<float> part = floats(source.tensor(prefix + name + ".weight"));
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

Checkpoint convert_and_open(const std::filesystem::path& source,
                            const std::filesystem::path& destination,
                            std::optional<DType> type = std::nullopt) {
  convert(source, destination, {.type = type, .force = true});
  return Checkpoint::open(destination);
}

TEST(Convert, ConvertsEveryFixtureKeepingEveryByteAligned) {
  const TemporaryFolder folder;
  for (const char* name : kFixtures) {
    SCOPED_TRACE(name);
    const Checkpoint model = convert_and_open(fixture(name), folder / name);
    const GsaConfig& c = model.config();
    EXPECT_EQ(model.weights().layers.size(), static_cast<size_t>(c.num_layers));
    EXPECT_EQ(static_cast<bool>(model.weights().layers[0].conv), c.conv_size > 0);
    EXPECT_EQ(static_cast<bool>(model.weights().layers[0].feature_map),
              c.feature_map == FeatureMap::kT2R);
    int64_t parameters = 0;
    for (const auto& [tensor, view] : model.file().tensors()) {
      if (tensor.rfind("gsa.pad.", 0) == 0) continue;
      parameters += view.elements();
      EXPECT_EQ(reinterpret_cast<uintptr_t>(view.data) % 64, 0u) << tensor;
    }
    EXPECT_EQ(parameters, c.parameters());
  }
}

TEST(Convert, StoresTogetherWhatIsUsedTogether) {
  const TemporaryFolder folder;
  for (const char* name : {"base", "conv", "expand", "gqa", "relu", "t2r"}) {
    SCOPED_TRACE(name);
    const SafetensorsFile source = SafetensorsFile::open(fixture(name) / "model.safetensors");
    const Checkpoint model = convert_and_open(fixture(name), folder / name);
    EXPECT_EQ(floats(model.weights().embeddings), joined(source, "model.", {"embeddings"}));
    EXPECT_EQ(floats(model.weights().norm), joined(source, "model.", {"norm"}));
    EXPECT_EQ(floats(model.weights().lm_head), joined(source, "", {"lm_head"}));
    for (int64_t i = 0; i < model.config().num_layers; ++i) {
      const LayerWeights& w = model.weights().layers[i];
      const std::string p = fmt::format("model.layers.{}.", i);
      EXPECT_EQ(floats(w.qkvf),
                joined(source, p + "attn.", {"q_proj", "k_proj", "v_proj", "f_proj"}));
      EXPECT_EQ(floats(w.o_proj), joined(source, p + "attn.", {"o_proj"}));
      EXPECT_EQ(floats(w.gate_up), joined(source, p + "mlp.", {"gate_proj", "up_proj"}));
      EXPECT_EQ(floats(w.down), joined(source, p + "mlp.", {"down_proj"}));
      EXPECT_EQ(floats(w.attn_norm), joined(source, p, {"attn_norm"}));
      EXPECT_EQ(floats(w.mlp_norm), joined(source, p, {"mlp_norm"}));
      EXPECT_EQ(floats(w.g_norm), joined(source, p + "attn.", {"g_norm"}));
      if (w.conv) {
        EXPECT_EQ(floats(w.conv),
                  joined(source, p + "attn.", {"q_conv1d", "k_conv1d", "v_conv1d"}));
      }
      if (w.feature_map) {
        EXPECT_EQ(floats(w.feature_map), joined(source, p + "attn.", {"feature_map.layer"}));
      }
    }
  }
}

TEST(Convert, MakesTheSameModelOfAStackedGate) {
  const TemporaryFolder folder;
  const Checkpoint gqa = convert_and_open(fixture("gqa"), folder / "gqa");
  const Checkpoint legacy = convert_and_open(fixture("legacy"), folder / "legacy");
  EXPECT_EQ(floats(gqa.weights().layers[1].gate_up), floats(legacy.weights().layers[1].gate_up));
  EXPECT_EQ(gqa.fingerprint(), legacy.fingerprint());
}

TEST(Convert, MakesTheSameModelOfShards) {
  const TemporaryFolder folder;
  std::vector<std::filesystem::path> shards;
  for (const auto& entry : std::filesystem::directory_iterator(fixture("wide"))) {
    if (entry.path().extension() == ".safetensors") shards.push_back(entry.path());
  }
  ASSERT_EQ(shards.size(), 26u);
  HfSource whole;
  whole.tensors = HfSource::read_tensors(shards);
  whole.config = nlohmann::json::parse(read_bytes(fixture("wide") / "config.json"));
  EXPECT_EQ(convert_and_open(fixture("wide"), folder / "shards").fingerprint(),
            convert_and_open(whole.write(), folder / "whole").fingerprint());
}

TEST(Convert, GivesTheSameBytesTwice) {
  const TemporaryFolder folder;
  convert(fixture("conv"), folder / "one");
  convert(fixture("conv"), folder / "two");
  EXPECT_EQ(read_bytes(folder / "one"), read_bytes(folder / "two"));
  const std::string bytes = read_bytes(folder / "one");
  EXPECT_EQ(bytes.find(folder.path().string()), std::string::npos);
  EXPECT_EQ(bytes.find(GSA_SOURCE_DIR), std::string::npos);
}

TEST(Convert, TellsModelsApartByTheirFingerprint) {
  const TemporaryFolder folder;
  HfSource source;
  const std::string original = convert_and_open(source.write(), folder / "m").fingerprint();
  std::string& bytes = source.tensors["model.layers.1.attn.q_proj.weight"].bytes;
  bytes.back() ^= static_cast<char>(0x80);  // one sign
  const std::string one_sign = convert_and_open(source.write(), folder / "m").fingerprint();
  EXPECT_NE(one_sign, original);
  bytes[3] ^= static_cast<char>(0x80);
  EXPECT_NE(convert_and_open(source.write(), folder / "m").fingerprint(), original);
  EXPECT_NE(convert_and_open(source.write(), folder / "m").fingerprint(), one_sign);
  bytes[3] ^= static_cast<char>(0x80);
  bytes.back() ^= static_cast<char>(0x80);
  EXPECT_EQ(convert_and_open(source.write(), folder / "m").fingerprint(), original);
  EXPECT_NE(convert_and_open(source.write(), folder / "m", DType::kBF16).fingerprint(), original);
  source.config["gate_logit_normalizer"] = 9;
  EXPECT_NE(convert_and_open(source.write(), folder / "m").fingerprint(), original);
}

TEST(Convert, CarriesTheTokenizerTheRulesAndTheTemplate) {
  const TemporaryFolder folder;
  HfSource source;
  source.write();
  EXPECT_EQ(convert_and_open(source.path, folder / "m").tokenizer(), "");
  EXPECT_EQ(convert_and_open(source.path, folder / "m").chat_template(), "");
  const std::string without = Checkpoint::open(folder / "m").fingerprint();
  write_bytes(source.path / "tokenizer.model", std::string("a\0b", 3));
  write_bytes(source.path / "tokenizer_config.json",
              R"({"add_eos_token":true,"chat_template":"{% \"x\" %}\n"})");
  const Checkpoint model = convert_and_open(source.path, folder / "m");
  EXPECT_EQ(model.tokenizer(), std::string("a\0b", 3));
  EXPECT_TRUE(model.tokenizer_rules().add_bos);
  EXPECT_TRUE(model.tokenizer_rules().add_eos);
  EXPECT_EQ(model.chat_template(), "{% \"x\" %}\n");
  EXPECT_EQ(model.file().metadata("gsa.source"), "source");
  EXPECT_EQ(model.fingerprint(), without);
}

TEST(Convert, ShipsTheModelThatIsInTheFolder) {
  const Checkpoint model = Checkpoint::open(GSA_SOURCE_DIR "/models/tale-10m.safetensors");
  EXPECT_EQ(model.type(), "bf16");
  EXPECT_EQ(model.config().num_layers, 10);
  EXPECT_EQ(model.config().parameters(), 10'231'552);
  EXPECT_GT(model.tokenizer().size(), 60000u);
  EXPECT_TRUE(model.tokenizer_rules().add_bos);
}

// Types ----------------------------------------------------------------------------------------

// The nearest value of a format with this many fraction bits, ties to even, in double arithmetic.
float nearest(float value, int fraction_bits, int least_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double place = std::ldexp(1.0, std::max(std::ilogb(value), least_exponent) - fraction_bits);
  return static_cast<float>(std::nearbyint(value / place) * place);
}

float as_type(float value, DType type) {
  if (type == DType::kF16) return nearest(value, 10, -14);
  if (type == DType::kBF16) return nearest(value, 7, -126);
  return value;
}

TEST(Convert, RoundsEveryTypeToEveryOther) {
  const TemporaryFolder folder;
  for (const char* name : {"base", "t2r", "gqa"}) {  // f32, f16, bf16
    const Checkpoint plain = convert_and_open(fixture(name), folder / "plain");
    for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
      SCOPED_TRACE(fmt::format("{} to {}", name, dtype_name(type)));
      const Checkpoint model = convert_and_open(fixture(name), folder / "m", type);
      EXPECT_EQ(model.type(), dtype_name(type));
      const LayerWeights &to = model.weights().layers[1], &from = plain.weights().layers[1];
      for (auto part : {&LayerWeights::qkvf, &LayerWeights::gate_up, &LayerWeights::down,
                        &LayerWeights::o_proj, &LayerWeights::feature_map}) {
        if (!(to.*part)) continue;
        EXPECT_EQ((to.*part).dtype, type);
        std::vector<float> expected = floats(from.*part);
        for (float& value : expected) value = as_type(value, type);
        EXPECT_EQ(floats(to.*part), expected);
      }
      EXPECT_EQ(to.attn_norm.dtype, DType::kF32);
      EXPECT_EQ(floats(to.attn_norm), floats(from.attn_norm));
      EXPECT_EQ(floats(to.g_norm), floats(from.g_norm));
    }
  }
}

TEST(Convert, JoinsTheBlocksInWhichLargeTensorsAreConverted) {
  const TemporaryFolder folder;
  HfSource source;
  source.config["vocab_size"] = 70'000;  // 4.48 M elements, not a multiple of a block
  for (const char* name : {"model.embeddings.weight", "lm_head.weight"}) {
    source.put_zeros(name, DType::kF32, {70'000, 64});
    std::string& bytes = source.tensors[name].bytes;
    for (size_t i = 0; i < bytes.size(); i += 4) {
      const float value = static_cast<float>(i % 1021) - 500;
      std::memcpy(bytes.data() + i, &value, sizeof(value));
    }
  }
  const Checkpoint plain = convert_and_open(source.write(), folder / "f32");
  const Checkpoint half = convert_and_open(source.path, folder / "f16", DType::kF16);
  for (const Checkpoint* model : {&plain, &half}) {
    for (const TensorView& view : {model->weights().embeddings, model->weights().lm_head}) {
      const std::vector<float> values = floats(view);
      ASSERT_EQ(values.size(), 70'000u * 64);
      size_t wrong = 0;
      for (size_t i = 0; i < values.size(); ++i) {
        wrong += values[i] != static_cast<float>(4 * i % 1021) - 500;
      }
      EXPECT_EQ(wrong, 0u);
    }
  }
}

TEST(Convert, KeepsConvolutionsInFloat32) {
  const TemporaryFolder folder;
  const Checkpoint model = convert_and_open(fixture("conv"), folder / "m", DType::kF16);
  EXPECT_EQ(model.weights().layers[0].conv.dtype, DType::kF32);
}

// Puts one float32 value into a weight of the base fixture.
void put_value(HfSource& source, float value) {
  std::memcpy(source.tensors["model.layers.0.mlp.down_proj.weight"].bytes.data() + 40, &value, 4);
}

TEST(Convert, RefusesAValueThatTheTypeCannotHold) {
  const TemporaryFolder folder;
  HfSource source;
  const auto error = [&](float value, DType type) {
    put_value(source, value);
    return error_of([&] { convert(source.write(), folder / "m", {.type = type}); });
  };
  const std::string tensor =
      source.path.string() + ": tensor model.layers.0.mlp.down_proj.weight holds ";
  EXPECT_EQ(error(-70000, DType::kF16),
            tensor + "-70000, which does not fit f16; convert to another type");
  EXPECT_EQ(error(3.4e38f, DType::kBF16),
            tensor + "3.4e+38, which does not fit bf16; convert to another type");
  EXPECT_THAT(folder.names(), IsEmpty());
}

TEST(Convert, KeepsWhatIsNotFinite) {
  const TemporaryFolder folder;
  HfSource source;
  for (DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    put_value(source, -std::numeric_limits<float>::infinity());
    Checkpoint model = convert_and_open(source.write(), folder / "m", type);
    EXPECT_EQ(floats(model.weights().layers[0].down)[10], -std::numeric_limits<float>::infinity());
    put_value(source, std::numeric_limits<float>::quiet_NaN());
    model = convert_and_open(source.write(), folder / "m", type);
    EXPECT_TRUE(std::isnan(floats(model.weights().layers[0].down)[10]));
  }
}

TEST(Convert, RefusesATypeThatIsNone) {
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([&] { convert(fixture("base"), folder / "m", {.type = DType::kI64}); }),
            "type i64 is not supported, expected f32, f16, bf16, q8 or q4");
}

TEST(Convert, MakesTheSameFileOfACheckpointAsOfItsFolder) {
  const TemporaryFolder folder;
  for (const char* name : {"base", "gqa", "conv", "t2r", "expand"}) {
    convert(fixture(name), folder / "plain", {.force = true});
    for (DType type : {DType::kF32, DType::kQ8, DType::kQ4}) {
      SCOPED_TRACE(fmt::format("{} to {}", name, dtype_name(type)));
      convert(fixture(name), folder / "direct", {.type = type, .force = true});
      convert(folder / "plain", folder / "again", {.type = type, .force = true});
      EXPECT_EQ(read_bytes(folder / "again"), read_bytes(folder / "direct"));
    }
  }
}

TEST(Convert, RefusesToReadOrReplaceWhatItShouldNot) {
  const TemporaryFolder folder;
  const std::string q8 = (folder / "q8").string();
  convert(fixture("base"), q8, {.type = DType::kQ8});
  EXPECT_EQ(error_of([&] { convert(q8, folder / "m", {.type = DType::kF32}); }),
            q8 + ": holds q8 weights, which lost what a conversion needs; convert its source");
  EXPECT_EQ(error_of([&] { convert(q8, q8, {.force = true}); }),
            q8 + ": holds q8 weights, which lost what a conversion needs; convert its source");
  const std::string plain = (folder / "plain").string();
  convert(fixture("base"), plain);
  EXPECT_EQ(error_of([&] { convert(plain, plain, {.type = DType::kQ8, .force = true}); }),
            plain + ": the source itself, expected another name");
  EXPECT_NO_THROW(Checkpoint::open(plain));
}

// Files ----------------------------------------------------------------------------------------

TEST(Convert, ReportsProgressUpToTheWhole) {
  const TemporaryFolder folder;
  std::vector<std::pair<int64_t, int64_t>> calls;
  convert(fixture("conv"), folder / "m",
          {.progress = [&](int64_t done, int64_t total) { calls.emplace_back(done, total); }});
  ASSERT_FALSE(calls.empty());
  for (size_t i = 1; i < calls.size(); ++i) {
    EXPECT_GT(calls[i].first, calls[i - 1].first);
    EXPECT_EQ(calls[i].second, calls[0].second);
  }
  EXPECT_EQ(calls.back().first, calls.back().second);
  EXPECT_LT(calls.back().second, static_cast<int64_t>(read_bytes(folder / "m").size()));
}

TEST(Convert, LeavesNothingBehindWhenStopped) {
  const TemporaryFolder folder;
  for (int stop_at : {1, 5, 12}) {
    int calls = 0;
    const auto stop = [&](int64_t, int64_t) {
      if (++calls == stop_at) throw std::runtime_error("stopped");
    };
    EXPECT_THROW(convert(fixture("base"), folder / "m", {.progress = stop}), std::runtime_error);
    EXPECT_THAT(folder.names(), IsEmpty());
  }
}

TEST(Convert, KeepsTheOldFileWhenStopped) {
  const TemporaryFolder folder;
  write_bytes(folder / "m", "old");
  const auto stop = [](int64_t, int64_t) { throw std::runtime_error("stopped"); };
  EXPECT_THROW(convert(fixture("base"), folder / "m", {.force = true, .progress = stop}),
               std::runtime_error);
  EXPECT_EQ(read_bytes(folder / "m"), "old");
  EXPECT_THAT(folder.names(), ElementsAre("m"));
}

TEST(Convert, OverwritesOnlyWhenForced) {
  const TemporaryFolder folder;
  const std::string path = (folder / "m").string();
  write_bytes(path, "old");
  EXPECT_EQ(error_of([&] { convert(fixture("base"), path); }),
            path + ": exists; --force overwrites it");
  EXPECT_EQ(read_bytes(path), "old");
  convert(fixture("base"), path, {.force = true});
  EXPECT_NO_THROW(Checkpoint::open(path));
}

TEST(Convert, SaysWhyADestinationCannotBeWritten) {
  const TemporaryFolder folder;
  const std::string path = folder.path().string();
  EXPECT_EQ(error_of([&] { convert(fixture("base"), path); }),
            path + ": a folder, expected the name of a file to write");
  EXPECT_EQ(error_of([&] { convert(fixture("base"), path + "/none/m"); }),
            path + "/none/m: cannot be written: there is no folder " + path + "/none");
  EXPECT_EQ(error_of([&] { convert(fixture("base"), "/dev/null", {.force = true}); }),
            "/dev/null: exists and is not a regular file");
}

TEST(Convert, NeverReplacesAFileOfItsSource) {
  HfSource source;
  const std::string path = source.write().string();
  for (const char* name : {"/model.safetensors", "/config.json"}) {
    const std::string before = read_bytes(path + name);
    EXPECT_EQ(error_of([&] { convert(path, path + name, {.force = true}); }),
              path + name + ": a file of the source folder, expected another name");
    EXPECT_EQ(read_bytes(path + name), before);
  }
  convert(path, path + "/converted.gsa");
  convert(path, path + "/converted.gsa", {.force = true});
  EXPECT_NO_THROW(Checkpoint::open(path + "/converted.gsa"));
}

TEST(Convert, WritesIntoTheCurrentFolderByNameAlone) {
  const TemporaryFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  convert(fixture("base"), "m");
  std::filesystem::current_path(before);
  EXPECT_THAT(folder.names(), ElementsAre("m"));
}

}  // namespace
}  // namespace gsa
