#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace gsa {

// One line of a benchmark: what was run, and what came out of its repetitions.
struct BenchRow {
  std::string model_type;  // "gsa-1.3b bf16"
  int64_t model_size = 0;  // bytes of the weights
  int64_t n_params = 0;
  std::string type;        // of the large matrices
  std::string state_type;  // of the memories
  int64_t state_size = 0;  // bytes of one sequence's state
  std::string backend;     // "cpu"
  int n_threads = 0;
  int64_t batch = 1;
  int64_t n_prompt = 0;
  int64_t n_gen = 0;
  int64_t n_depth = 0;
  std::vector<double> samples_ts{};  // tokens per second of each repetition
  // The same by the device's clock, where it has one of its own, of generation: batch by the time
  // of a step. What samples_ts falls short of it is time in which the device waited for the host.
  std::vector<double> samples_device_ts{};
  double bytes_per_token = 0;  // that must cross the memory bus at least
  double read_bandwidth = 0;   // bytes per second, measured beside this row

  double avg_ts() const;
  double stddev_ts() const;
  double gb_per_s() const { return bytes_per_token * avg_ts() / 1e9; }
  double bandwidth_share() const { return bytes_per_token * avg_ts() / read_bandwidth; }
  std::string test() const;  // "pp512", "tg128", "tg128 @ d1000"
};

// Prints rows as they come: md, csv and jsonl at once, json as one array at the end.
class BenchTable {
 public:
  // format: "md", "csv", "json" or "jsonl".
  explicit BenchTable(const std::string& format) : format_(format) {}
  void add(const BenchRow& row);
  void finish();

 private:
  std::string format_;
  int64_t rows_ = 0;
};

}  // namespace gsa
