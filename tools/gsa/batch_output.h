#pragma once

#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <unordered_set>

namespace gsa {

// The file that results are appended to, a line at a time, and what it held at the start.
//
// Opening it again after an interruption cuts off a last line that was not finished and counts the
// lines that were. Any thread may append.
class BatchOutput {
 public:
  // Throws where the file cannot be written, is in use by another run, or holds something else
  // than results.
  explicit BatchOutput(const std::string& path);
  ~BatchOutput();
  BatchOutput(const BatchOutput&) = delete;
  BatchOutput& operator=(const BatchOutput&) = delete;

  // True if the file held a result with this key when it was opened.
  bool was_finished(const std::string& key) const { return finished_.contains(key); }

  // Appends one line in one piece. Throws where the disk is full.
  void append(const nlohmann::ordered_json& result);

  // What identifies a result: its id, or the number of the line where that says more.
  static std::string key_of(const nlohmann::ordered_json& result);

 private:
  void read_finished();

  std::string path_;
  int file_ = -1;
  std::unordered_set<std::string> finished_;
  std::mutex mutex_;
};

}  // namespace gsa
