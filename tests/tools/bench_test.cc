// gsa bench as a program runs it, and the forms of its table. Every row of a run measures the
// bandwidth too, which takes seconds: one row here.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/program.h"
#include "tools/gsa/bench_table.h"

namespace gsa::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

std::string bench(std::vector<std::string> more) {
  std::vector<std::string> arguments = {"bench", "--device", "cpu", "--threads", "1", "-r", "2"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return output_of(arguments);
}

TEST(GsaBench, GivesAnArrayOfRowsWithLlamaBenchsKeysAndOurs) {
  const json rows = json::parse(bench({"-m", tale(), "-p", "0", "-n", "4", "-b", "3", "-d", "700",
                                       "--state-type", "f16", "-o", "json"}));
  ASSERT_EQ(rows.size(), 1u);
  const int64_t state_bytes = 1310720 / 2;  // of tale-10m, with memories of 16 bits
  for (const json& row : rows) {
    EXPECT_EQ(row.at("model_type"), "tale-10m.safetensors bf16");
    EXPECT_EQ(row.at("n_params"), 10231552);
    EXPECT_EQ(row.at("type"), "bf16");
    EXPECT_EQ(row.at("state_type"), "f16");
    EXPECT_EQ(row.at("state_size"), state_bytes);
    EXPECT_EQ(row.at("backend"), "cpu");
    EXPECT_EQ(row.at("n_threads"), 1);
    EXPECT_EQ(row.at("batch"), 3);
    EXPECT_EQ(row.at("n_depth"), 700);
    ASSERT_EQ(row.at("samples_ts").size(), 2u);
    const double a = row["samples_ts"][0], b = row["samples_ts"][1], mean = row.at("avg_ts");
    EXPECT_GT(mean, 0);
    EXPECT_NEAR(mean, (a + b) / 2, 1e-6 * mean);
    EXPECT_NEAR(row.at("stddev_ts").get<double>(), std::abs(a - b) / std::sqrt(2), 1e-6 * mean);
    const double gb = row.at("gb_per_s"), bytes = row.at("bytes_per_token");
    EXPECT_NEAR(gb, bytes * mean / 1e9, 1e-6 * gb);
    EXPECT_GT(row.at("bandwidth_share"), 0);
    EXPECT_EQ(row.at("samples_device_ts"), json::array()) << "a CPU has no clock of its own";
    EXPECT_GT(row.at("model_size"), 2 * 8 << 20);
  }
  EXPECT_EQ(rows[0]["n_prompt"], 0);
  EXPECT_EQ(rows[0]["n_gen"], 4);
  // A decode step reads the weights once and each of the three states twice.
  const double weights = rows[0]["model_size"];
  EXPECT_NEAR(rows[0]["bytes_per_token"], (weights + 3 * 2 * state_bytes) / 3, 1);
}

BenchRow row(int64_t n_prompt, int64_t n_gen, int64_t n_depth,
             const std::string& state_type = "f32") {
  return {.model_type = "m bf16",
          .model_size = int64_t{3} << 30,
          .n_params = 1500000000,
          .type = "bf16",
          .state_type = state_type,
          .state_size = 1 << 20,
          .backend = "cpu",
          .n_threads = 2,
          .batch = 8,
          .n_prompt = n_prompt,
          .n_gen = n_gen,
          .n_depth = n_depth,
          .samples_ts = {9, 10, 11},
          .samples_device_ts = {9, 10, 12},
          .bytes_per_token = 5e8,
          .read_bandwidth = 1e10};
}

std::string printed(const std::string& format, const std::vector<BenchRow>& rows) {
  testing::internal::CaptureStdout();
  BenchTable table(format);
  for (const BenchRow& row : rows) table.add(row);
  table.finish();
  return testing::internal::GetCapturedStdout();
}

TEST(BenchTable, PrintsMarkdownInLlamaBenchsShape) {
  EXPECT_EQ(printed("md", {row(512, 0, 0), row(0, 128, 1000), row(0, 8, 0, "f16")}),
            "| model | size | params | backend | threads | batch | test | t/s | MB/token | GB/s | "
            "of read bandwidth |\n"
            "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
            "| m bf16 | 3.00 GiB | 1.50 B | cpu | 2 | 8 | pp512 | 10.00 ± 1.00 | 500.0 | 5.00 | "
            "50% |\n"
            "| m bf16 | 3.00 GiB | 1.50 B | cpu | 2 | 8 | tg128 @ d1000 | 10.00 ± 1.00 | 500.0 | "
            "5.00 | 50% |\n"
            "| m bf16, state f16 | 3.00 GiB | 1.50 B | cpu | 2 | 8 | tg8 | 10.00 ± 1.00 | 500.0 | "
            "5.00 | 50% |\n");
}

TEST(BenchTable, PrintsTheSameFieldsAsJsonJsonlAndCsv) {
  const std::vector<BenchRow> rows = {row(512, 0, 0), row(0, 128, 7)};
  const json array = json::parse(printed("json", rows));
  ASSERT_EQ(array.size(), 2u);
  EXPECT_EQ(array[1].at("n_depth"), 7);
  EXPECT_EQ(array[1].at("avg_ts"), 10);
  EXPECT_EQ(array[1].at("bandwidth_share"), 0.5);
  EXPECT_EQ(array[1].at("samples_device_ts"), json::array({9, 10, 12}));
  std::istringstream jsonl(printed("jsonl", rows)), csv(printed("csv", rows));
  std::string line, names;
  std::getline(csv, names);
  EXPECT_EQ(names,
            "model_type,model_size,n_params,type,state_type,state_size,backend,n_threads,batch,"
            "n_prompt,n_gen,n_depth,avg_ts,stddev_ts,bytes_per_token,gb_per_s,bandwidth_share");
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_TRUE(std::getline(jsonl, line));
    EXPECT_EQ(json::parse(line), array[i]);
    ASSERT_TRUE(std::getline(csv, line));
    EXPECT_THAT(line, StartsWith("\"m bf16\",3221225472,1500000000,\"bf16\",\"f32\",1048576,"
                                 "\"cpu\",2,8,"));
    EXPECT_EQ(std::count(line.begin(), line.end(), ','),
              std::count(names.begin(), names.end(), ','));
  }
  EXPECT_FALSE(std::getline(csv, line));
  EXPECT_EQ(json::parse(printed("json", {})), json::array());
}

TEST(GsaBench, SaysWhatIsMissing) {
  const Outcome outcome = run({"bench"});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_THAT(outcome.err, HasSubstr("--config"));
}

}  // namespace
}  // namespace gsa::test
