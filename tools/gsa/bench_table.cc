#include "tools/gsa/bench_table.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tools/gsa/result_json.h"

namespace gsa {
namespace {

using Json = nlohmann::ordered_json;

Json row_json(const BenchRow& row) {
  return {{"model_type", row.model_type},
          {"model_size", row.model_size},
          {"n_params", row.n_params},
          {"type", row.type},
          {"state_type", row.state_type},
          {"state_size", row.state_size},
          {"backend", row.backend},
          {"n_threads", row.n_threads},
          {"batch", row.batch},
          {"n_prompt", row.n_prompt},
          {"n_gen", row.n_gen},
          {"n_depth", row.n_depth},
          {"avg_ts", row.avg_ts()},
          {"stddev_ts", row.stddev_ts()},
          {"samples_ts", row.samples_ts},
          {"samples_device_ts", row.samples_device_ts},
          {"bytes_per_token", row.bytes_per_token},
          {"gb_per_s", row.gb_per_s()},
          {"bandwidth_share", row.bandwidth_share()}};
}

void print_md(const BenchRow& row, bool first) {
  if (first) {
    std::puts(
        "| model | size | params | backend | threads | batch | test | t/s | MB/token | GB/s | "
        "of read bandwidth |\n"
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
  }
  // As a rule states are float32, which goes without saying.
  const std::string model =
      row.model_type + (row.state_type == "f32" ? "" : ", state " + row.state_type);
  std::printf(
      "| %s | %.2f GiB | %.2f B | %s | %d | %lld | %s | %.2f ± %.2f | %.1f | %.2f | %.0f%% |\n",
      model.c_str(), row.model_size / 0x1p30, row.n_params / 1e9, row.backend.c_str(),
      row.n_threads, static_cast<long long>(row.batch), row.test().c_str(), row.avg_ts(),
      row.stddev_ts(), row.bytes_per_token / 1e6, row.gb_per_s(), 100 * row.bandwidth_share());
}

void print_csv(const BenchRow& row, bool first) {
  const Json json = row_json(row);
  std::string names, values;
  for (const auto& [key, value] : json.items()) {
    if (value.is_array()) continue;
    if (!names.empty()) {
      names += ',';
      values += ',';
    }
    names += key;
    values += value.dump();
  }
  if (first) std::puts(names.c_str());
  std::puts(values.c_str());
}

}  // namespace

double BenchRow::avg_ts() const {
  return std::accumulate(samples_ts.begin(), samples_ts.end(), 0.0) /
         static_cast<double>(samples_ts.size());
}

double BenchRow::stddev_ts() const {
  if (samples_ts.size() < 2) return 0;
  double squares = 0;
  for (double sample : samples_ts) squares += (sample - avg_ts()) * (sample - avg_ts());
  return std::sqrt(squares / static_cast<double>(samples_ts.size() - 1));
}

std::string BenchRow::test() const {
  const std::string name =
      n_prompt > 0 ? fmt::format("pp{}", n_prompt) : fmt::format("tg{}", n_gen);
  return n_depth > 0 ? fmt::format("{} @ d{}", name, n_depth) : name;
}

void BenchTable::add(const BenchRow& row) {
  const bool first = rows_++ == 0;
  if (format_ == "md") {
    print_md(row, first);
  } else if (format_ == "csv") {
    print_csv(row, first);
  } else if (format_ == "jsonl") {
    std::puts(dump_json(row_json(row)).c_str());
  } else {
    std::printf("%s%s", first ? "[\n" : ",\n", dump_json(row_json(row)).c_str());
  }
  std::fflush(stdout);
}

void BenchTable::finish() {
  if (format_ == "json") std::puts(rows_ == 0 ? "[]" : "\n]");
}

}  // namespace gsa
