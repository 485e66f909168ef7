#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>

namespace gsa {

// A line on the terminal, ended whatever ends the work. Work that is done at once shows nothing.
class ProgressBar {
 public:
  ~ProgressBar() {
    if (shown_ >= 0) std::fputc('\n', stderr);
  }

  // Bytes.
  void show(int64_t done, int64_t total) {
    const int64_t percent = total > 0 ? done * 100 / total : 100;
    if (!terminal_ || percent == shown_ || Clock::now() - start_ < kPatience) return;
    shown_ = percent;
    constexpr int64_t kWidth = 40;
    const int64_t filled = percent * kWidth / 100;
    std::fprintf(stderr, "\r[%s%s] %3d%%  %.2f of %.2f GB", std::string(filled, '#').c_str(),
                 std::string(kWidth - filled, ' ').c_str(), static_cast<int>(percent), done / 1e9,
                 total / 1e9);
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPatience{200};

  const bool terminal_ = isatty(STDERR_FILENO) != 0;
  const Clock::time_point start_ = Clock::now();
  int64_t shown_ = -1;
};

// Shows how the weights go to the device (EngineOptions::on_load).
inline std::function<void(int64_t, int64_t)> loading_bar() {
  return [bar = std::make_shared<ProgressBar>()](int64_t done, int64_t total) {
    bar->show(done, total);
  };
}

}  // namespace gsa
