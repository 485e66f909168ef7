#include "tools/gsa/batch_output.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kernels/error.h"
#include "tools/gsa/result_json.h"

namespace gsa {

using Json = nlohmann::ordered_json;

BatchOutput::BatchOutput(const std::string& path) : path_(path) {
  file_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) throw Error("{}: cannot be written: {}", path, std::strerror(errno));
  try {
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      throw Error("{}: another run is writing to it", path);
    }
    read_finished();
  } catch (...) {
    close(file_);
    throw;
  }
}

BatchOutput::~BatchOutput() { close(file_); }

std::string BatchOutput::key_of(const Json& result) {
  if (const auto id = result.find("id"); id != result.end()) return "id " + dump_json(*id);
  if (const auto line = result.find("line"); line != result.end()) {
    return "line " + dump_json(*line);
  }
  return {};
}

void BatchOutput::read_finished() {
  std::ifstream in(path_, std::ios::binary);
  int64_t whole = 0;
  int64_t number = 0;
  for (std::string line; std::getline(in, line) && !in.eof();) {
    ++number;
    const Json result = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const std::string key = result.is_object() ? key_of(result) : std::string();
    if (key.empty()) {
      throw Error("{}: line {} is no result of gsa batch; choose another output file", path_,
                  number);
    }
    finished_.insert(key);
    whole += static_cast<int64_t>(line.size()) + 1;
  }
  if (ftruncate(file_, whole) != 0) {
    throw Error("{}: cannot be cut to its whole lines: {}", path_, std::strerror(errno));
  }
}

void BatchOutput::append(const Json& result) {
  const std::string line = dump_json(result) + "\n";
  const std::lock_guard lock(mutex_);
  for (size_t done = 0; done < line.size();) {
    const ssize_t n = write(file_, line.data() + done, line.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) throw Error("{}: cannot be written: {}", path_, std::strerror(errno));
    done += static_cast<size_t>(n);
  }
}

}  // namespace gsa
