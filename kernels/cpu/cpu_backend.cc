#include <algorithm>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <sys/mman.h>

#include "kernels/backend.h"
#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/mix.h"
#include "kernels/cpu/read_bandwidth.h"
#include "kernels/cpu/sample.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/error.h"
#include "kernels/half.h"

namespace gsa {
namespace {

// Cuts the rows of a weight into units of work of equal size: several for each thread, since they
// are never equally fast, and not so few rows that memory is read in snatches.
struct RowUnits {
  RowUnits(int64_t rows, int threads) : rows(rows) {
    constexpr int64_t kUnitsPerThread = 8, kFew = 32, kMany = 192;
    const int64_t least = std::max<int64_t>(threads * kUnitsPerThread, (rows + kMany - 1) / kMany);
    const int64_t wanted = (rows + least - 1) / least;
    size = std::max(kFew, (wanted + kFew - 1) / kFew * kFew);
    count = (rows + size - 1) / size;
  }
  int64_t begin(int64_t unit) const { return unit * size; }
  int64_t end(int64_t unit) const { return std::min(begin(unit) + size, rows); }

  int64_t rows, size, count;
};

std::string processor_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "CPU";
}

int64_t available_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string key; info >> key;) {
    int64_t kib = 0;
    if (key == "MemAvailable:" && info >> kib) return kib * 1024;
    info.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::numeric_limits<int64_t>::max();
}

auto* narrowing_to(DType type) {
  assert(type == DType::kF16 || type == DType::kBF16);
  return type == DType::kF16 ? f32_to_f16 : f32_to_bf16;
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads) : pool_(threads > 0 ? threads : physical_cores()) {}

  std::string_view name() const override { return "cpu"; }
  std::string description() const override {
    return fmt::format("{}, {} threads", processor_name(), pool_.threads());
  }
  int threads() const override { return pool_.threads(); }

  Buffer allocate(size_t bytes) override;
  TensorView import_weights(const TensorView& host) override { return host; }
  void upload(const void* host, size_t bytes, void* device) override {
    std::copy_n(static_cast<const std::byte*>(host), bytes, static_cast<std::byte*>(device));
  }
  void download(const void* device, size_t bytes, void* host) override {
    std::copy_n(static_cast<const std::byte*>(device), bytes, static_cast<std::byte*>(host));
  }
  HostFloats copy_out(const float* device, int64_t count) override {
    return std::vector<float>(device, device + count);
  }
  void copy_in(const HostFloats& host, float* device) override {
    std::copy(host.begin(), host.end(), device);
  }
  void gather(const Slices& from, float* floats) override;
  void scatter(const float* floats, const Slices& to) override;
  void fill(const Slices& to, float value) override;
  void synchronize() override {}
  int64_t preferred_step_tokens() const override { return 512; }
  int64_t free_memory() const override { return available_memory(); }
  double measure_read_bandwidth() override { return cpu::measure_read_bandwidth(pool_); }

  void reserve(const StepLimits& limits, const MixShape& shape, int64_t D, int64_t F) override;
  bool begin_step(const Step& step) override;
  bool end_step() override { return false; }
  void embed(const TensorView& table, const TensorView& x) override;
  void norm_project(const NormProject& args) override;
  void convolve(const Convolve& args) override { cpu::convolve(args, step_.segments, pool_); }
  void mix(const Mix& args) override { cpu::mix(args, step_.segments, scratch_, pool_); }
  void gated_mlp(const GatedMlp& args) override;
  void gather_logit_rows(const TensorView& x, const TensorView& out) override;
  void score(const TensorView& logits, std::span<const int32_t> targets, int32_t top,
             std::span<SampleResult> results) override;
  void queue_sample(const TensorView& logits, std::span<const SampleRow> rows) override;
  void collect_sample(std::span<SampleResult> results) override;
  void drop_samples() override { draws_.clear(); }

 private:
  // Tokens that are drawn and not yet collected.
  struct Draw {
    std::vector<SampleResult> results;
    bool nan = false;
  };

  // results[r] = body(row r of the logits, r), rows in parallel; false where one holds a NaN.
  template <typename Body>
  bool for_each_row(const TensorView& logits, std::span<SampleResult> results, const Body& body);

  // normed_ = norm(x), row by row.
  void normalize(const TensorView& x, const TensorView& weight, double eps);
  // y (+)= weight x, the rows of the weight shared out among the threads. y is a row of y_stride.
  void project(const TensorView& weight, int64_t tokens, bool accumulate, const float* x, float* y,
               int64_t y_stride);

  ThreadPool pool_;
  Step step_;
  std::vector<int32_t> step_tokens_;  // of a step whose tokens are drawn ones
  std::deque<Draw> draws_;
  std::vector<int32_t> drawn_;  // tokens of the latest draw
  cpu::MixScratch scratch_;
  // Aligned, so that no vector lies across two cache lines.
  Buffer normed_;  // [T, max(D, H*V)]
  Buffer up_;      // [T, F]
};

Buffer CpuBackend::allocate(size_t bytes) {
  // Straight from the system, so that pages come zeroed and only when they are touched.
  void* data = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) {
    throw Error("cannot allocate {:.2f} GiB of memory: {}", bytes / 0x1p30, std::strerror(errno));
  }
  return Buffer(data, bytes, [bytes](void* p) { munmap(p, std::max<size_t>(bytes, 1)); });
}

void CpuBackend::gather(const Slices& from, float* floats) {
  const TensorView rows(from.data, from.type, {from.rows, from.pitch});
  for (int64_t r = 0; r < from.rows; ++r) {
    cpu::widen(rows, r * from.pitch, from.count, floats + r * from.count);
  }
}

void CpuBackend::scatter(const float* floats, const Slices& to) {
  for (int64_t r = 0; r < to.rows; ++r, floats += to.count) {
    if (to.type == DType::kF32) {
      std::copy_n(floats, to.count, static_cast<float*>(to.data) + r * to.pitch);
    } else {
      std::transform(floats, floats + to.count, static_cast<uint16_t*>(to.data) + r * to.pitch,
                     narrowing_to(to.type));
    }
  }
}

void CpuBackend::fill(const Slices& to, float value) {
  for (int64_t r = 0; r < to.rows; ++r) {
    if (to.type == DType::kF32) {
      std::fill_n(static_cast<float*>(to.data) + r * to.pitch, to.count, value);
    } else {
      std::fill_n(static_cast<uint16_t*>(to.data) + r * to.pitch, to.count,
                  narrowing_to(to.type)(value));
    }
  }
}

void CpuBackend::reserve(const StepLimits& limits, const MixShape& shape, int64_t D, int64_t F) {
  scratch_.reserve(limits.tokens, shape);
  normed_ = allocate(std::max(limits.tokens, limits.logit_rows) * std::max(D, shape.H * shape.V) *
                     sizeof(float));
  up_ = allocate(limits.tokens * F * sizeof(float));
}

bool CpuBackend::begin_step(const Step& step) {
  step_ = step;
  if (step.drawn_rows.empty()) return true;
  step_tokens_.clear();
  for (int32_t row : step.drawn_rows) step_tokens_.push_back(drawn_[row]);
  step_.tokens = step_tokens_;
  return true;
}

void CpuBackend::embed(const TensorView& table, const TensorView& x) {
  const int64_t D = table.shape[1];
  for (size_t t = 0; t < step_.tokens.size(); ++t) {
    cpu::widen(table, step_.tokens[t] * D, D, x.f32() + t * D);
  }
}

void CpuBackend::normalize(const TensorView& x, const TensorView& weight, double eps) {
  const int64_t n = x.shape[1];
  assert(x.bytes() <= normed_.bytes());
  pool_.parallel_for(x.shape[0], [&](int64_t t) {
    cpu::rms_norm(x.f32() + t * n, static_cast<const float*>(weight.data), eps, n,
                  normed_.f32() + t * n);
  });
}

void CpuBackend::project(const TensorView& weight, int64_t tokens, bool accumulate, const float* x,
                         float* y, int64_t y_stride) {
  const int64_t rows = weight.shape[0];
  const RowUnits units(rows, pool_.threads());
  pool_.parallel_for(units.count, [&](int64_t unit) {
    cpu::matmul_rows({.x = x,
                      .x_stride = weight.shape[1],
                      .tokens = tokens,
                      .weight = weight,
                      .row_begin = units.begin(unit),
                      .row_end = units.end(unit),
                      .accumulate = accumulate,
                      .y = y,
                      .y_stride = y_stride});
  });
}

void CpuBackend::norm_project(const NormProject& args) {
  const int64_t out = args.y.shape[1], first = args.weight.shape[0];
  assert(args.x.shape[1] == args.weight.shape[1]);
  assert(out == first + (args.apart ? args.apart.shape[0] : 0));
  normalize(args.x, args.norm_weight, args.eps);
  const auto part = [&](const TensorView& weight, int64_t column) {
    project(weight, args.x.shape[0], args.accumulate, normed_.f32(), args.y.f32() + column, out);
  };
  part(args.weight, 0);
  if (args.apart) part(args.apart, first);
}

void CpuBackend::gated_mlp(const GatedMlp& args) {
  const int64_t tokens = args.x.shape[0];
  const int64_t F = args.hidden.shape[1];
  assert(args.gate_up.shape[0] == 2 * F && tokens * F * sizeof(float) <= up_.bytes());
  normalize(args.x, args.norm_weight, args.eps);
  const RowUnits units(F, pool_.threads());
  pool_.parallel_for(units.count, [&](int64_t unit) {
    const int64_t begin = units.begin(unit);
    const int64_t end = units.end(unit);
    cpu::MatmulRows rows{.x = normed_.f32(),
                         .x_stride = args.x.shape[1],
                         .tokens = tokens,
                         .weight = args.gate_up.rows(0, F),
                         .row_begin = begin,
                         .row_end = end,
                         .y = args.hidden.f32(),
                         .y_stride = F};
    cpu::matmul_rows(rows);
    rows.weight = args.gate_up.rows(F, F);
    rows.y = up_.f32();
    cpu::matmul_rows(rows);
    for (int64_t t = 0; t < tokens; ++t) {
      cpu::silu_multiply(up_.f32() + t * F + begin, end - begin, args.hidden.f32() + t * F + begin);
    }
  });
  project(args.down, tokens, true, args.hidden.f32(), args.x.f32(), args.x.shape[1]);
}

void CpuBackend::gather_logit_rows(const TensorView& x, const TensorView& out) {
  const int64_t D = x.shape[1];
  for (size_t r = 0; r < step_.logit_rows.size(); ++r) {
    std::copy_n(x.f32() + step_.logit_rows[r] * D, D, out.f32() + r * D);
  }
}

template <typename Body>
bool CpuBackend::for_each_row(const TensorView& logits, std::span<SampleResult> results,
                              const Body& body) {
  assert(logits.shape[0] == static_cast<int64_t>(results.size()));
  const int64_t N = logits.shape[1];
  std::atomic<bool> nan = false;
  pool_.parallel_for(static_cast<int64_t>(results.size()), [&](int64_t r) {
    const float* row = logits.f32() + r * N;
    if (std::any_of(row, row + N, [](float v) { return std::isnan(v); })) {
      nan = true;
    } else {
      results[r] = body(row, r);
    }
  });
  return !nan;
}

void CpuBackend::score(const TensorView& logits, std::span<const int32_t> targets, int32_t top,
                       std::span<SampleResult> results) {
  const bool sound = for_each_row(logits, results, [&](const float* row, int64_t r) {
    return cpu::score_row(row, logits.shape[1], targets[r], top);
  });
  if (!sound) throw_nan_logits();
}

// Draws at once; only the results wait.
void CpuBackend::queue_sample(const TensorView& logits, std::span<const SampleRow> rows) {
  Draw draw;
  draw.results.resize(rows.size());
  draw.nan = !for_each_row(logits, draw.results, [&](const float* logits_row, int64_t r) {
    SampleRow row = rows[r];
    std::vector<TokenCount> counts;
    if (row.pending_row >= 0) {
      counts = cpu::count_once_more(row.counts, drawn_[row.pending_row]);
      row.counts = counts;
    }
    return cpu::sample_row(logits_row, logits.shape[1], row);
  });
  drawn_.clear();
  for (const SampleResult& result : draw.results) drawn_.push_back(result.token);
  draws_.push_back(std::move(draw));
}

void CpuBackend::collect_sample(std::span<SampleResult> results) {
  assert(!draws_.empty() && draws_.front().results.size() == results.size());
  const Draw draw = std::move(draws_.front());
  draws_.pop_front();
  if (draw.nan) throw_nan_logits();
  std::copy(draw.results.begin(), draw.results.end(), results.begin());
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace gsa
