#include "kernels/cpu/mix.h"

#include <algorithm>
#include <cassert>
#include <cstddef>

#include "kernels/cpu/elementwise.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/memory.h"

namespace gsa::cpu {
namespace {

// Where q, k, v and f begin in a row of qkvf.
struct Columns {
  explicit Columns(const MixShape& s)
      : k(s.H * s.K), v(k + s.G * s.K), f(v + s.G * s.V), width(f + s.G * s.M) {}
  int64_t k, v, f, width;
};

// The q and k columns of all tokens through the learned map, head by head.
void map_heads(const Mix& args, const Columns& columns, MixScratch& scratch, ThreadPool& pool) {
  const MixShape& s = args.shape;
  float* qkvf = args.qkvf.f32();
  const int64_t heads = s.H + s.G;
  const int64_t tokens = args.qkvf.shape[0];
  pool.parallel_for(heads, [&](int64_t h) {
    matmul_rows({.x = qkvf + h * s.K,
                 .x_stride = columns.width,
                 .tokens = tokens,
                 .weight = args.feature_weight,
                 .row_begin = 0,
                 .row_end = s.K,
                 .y = scratch.mapped.data() + h * s.K,
                 .y_stride = heads * s.K});
    for (int64_t t = 0; t < tokens; ++t) {
      std::copy_n(scratch.mapped.data() + (t * heads + h) * s.K, s.K,
                  qkvf + t * columns.width + h * s.K);
    }
  });
}

// phi(q), phi(k), silu(v) and the gates, token by token in place of the projections.
void activate(const Mix& args, const Columns& columns, MixScratch& scratch, ThreadPool& pool) {
  if (args.feature_map == FeatureMap::kT2R) map_heads(args, columns, scratch, pool);
  const int64_t slots = args.shape.G * args.shape.M;
  pool.parallel_for(args.qkvf.shape[0], [&](int64_t t) {
    float* row = args.qkvf.f32() + t * columns.width;
    if (args.feature_map == FeatureMap::kSwish) {
      silu(row, columns.v);
    } else {
      relu(row, columns.v);
    }
    silu(row + columns.v, columns.f - columns.v);
    gates(row + columns.f, args.normalizer, slots, row + columns.f,
          scratch.write.data() + t * slots);
  });
}

// Cuts the columns of all memories of the step into units of work, finely enough for the threads.
struct Units {
  // A row of a unit fills cache lines, so that no two threads write to one.
  Units(int64_t memories, int64_t columns, size_t element_bytes, int threads) : columns(columns) {
    const int64_t least = static_cast<int64_t>(64 / element_bytes);
    for (block = 64; block > least && memories * count_of(block) < 2 * threads;) block /= 2;
    blocks = count_of(block);
    total = memories * blocks;
  }
  int64_t count_of(int64_t size) const { return (columns + size - 1) / size; }
  int64_t begin(int64_t unit) const { return unit % blocks * block; }
  int64_t end(int64_t unit) const { return std::min(begin(unit) + block, columns); }

  int64_t columns, block, blocks, total;
};

// Element `i` of a memory of this type.
void* element(void* memory, size_t element_bytes, int64_t i) {
  return static_cast<std::byte*>(memory) + i * static_cast<int64_t>(element_bytes);
}

}  // namespace

void MixScratch::reserve(int64_t tokens, const MixShape& s) {
  write.resize(tokens * s.G * s.M);
  scores.resize(tokens * s.H * s.M);
  mapped.resize(tokens * (s.H + s.G) * s.K);
}

void mix(const Mix& args, std::span<const Segment> segments, MixScratch& scratch,
         ThreadPool& pool) {
  const MixShape& s = args.shape;
  const Columns columns(s);
  const int64_t tokens = args.qkvf.shape[0];
  const int64_t heads = s.H / s.G;
  const int64_t memories = static_cast<int64_t>(segments.size()) * s.G;
  const size_t element_bytes = dtype_bytes(args.state_type);
  float* qkvf = args.qkvf.f32();
  float* scores = scratch.scores.data();
  float* out = args.out.f32();
  assert(args.qkvf.shape[1] == columns.width && args.out.shape[1] == s.H * s.V);

  activate(args, columns, scratch, pool);
  std::fill_n(scores, tokens * s.H * s.M, 0.0f);
  std::fill_n(out, tokens * s.H * s.V, 0.0f);

  const Units slots(memories, s.M, element_bytes, pool.threads());
  pool.parallel_for(slots.total, [&](int64_t unit) {
    const int64_t g = unit / slots.blocks % s.G;
    const Segment& segment = segments[unit / slots.blocks / s.G];
    const int64_t memory = segment.state * s.G + g;
    const float* row = qkvf + segment.first * columns.width;
    write_and_read({.type = args.state_type,
                    .memory = element(args.hk, element_bytes, memory * s.K * s.M),
                    .stride = s.M,
                    .row_begin = 0,
                    .row_end = s.K,
                    .column_begin = slots.begin(unit),
                    .column_end = slots.end(unit),
                    .tokens = segment.count,
                    .heads = heads,
                    .keep_by_row = false,
                    .keep = row + columns.f + g * s.M,
                    .keep_step = columns.width,
                    .row_write = row + columns.k + g * s.K,
                    .row_write_step = columns.width,
                    .column_write = scratch.write.data() + (segment.first * s.G + g) * s.M,
                    .column_write_step = s.G * s.M,
                    .query = row + g * heads * s.K,
                    .query_stride = s.K,
                    .query_step = columns.width,
                    .sums = scores + (segment.first * s.H + g * heads) * s.M,
                    .sums_stride = s.M,
                    .sums_step = s.H * s.M});
  });

  pool.parallel_for(tokens, [&](int64_t t) {
    for (int64_t h = 0; h < s.H; ++h) softmax(scores + (t * s.H + h) * s.M, s.M);
  });

  const Units values(memories, s.V, element_bytes, pool.threads());
  pool.parallel_for(values.total, [&](int64_t unit) {
    const int64_t g = unit / values.blocks % s.G;
    const Segment& segment = segments[unit / values.blocks / s.G];
    const int64_t memory = segment.state * s.G + g;
    const float* row = qkvf + segment.first * columns.width;
    write_and_read({.type = args.state_type,
                    .memory = element(args.hv, element_bytes, memory * s.M * s.V),
                    .stride = s.V,
                    .row_begin = 0,
                    .row_end = s.M,
                    .column_begin = values.begin(unit),
                    .column_end = values.end(unit),
                    .tokens = segment.count,
                    .heads = heads,
                    .keep_by_row = true,
                    .keep = row + columns.f + g * s.M,
                    .keep_step = columns.width,
                    .row_write = scratch.write.data() + (segment.first * s.G + g) * s.M,
                    .row_write_step = s.G * s.M,
                    .column_write = row + columns.v + g * s.V,
                    .column_write_step = columns.width,
                    .query = scores + (segment.first * s.H + g * heads) * s.M,
                    .query_stride = s.M,
                    .query_step = s.H * s.M,
                    .sums = out + (segment.first * s.H + g * heads) * s.V,
                    .sums_stride = s.V,
                    .sums_step = s.H * s.V});
  });

  pool.parallel_for(tokens, [&](int64_t t) { silu(out + t * s.H * s.V, s.H * s.V); });
}

void convolve(const Convolve& args, std::span<const Segment> segments, ThreadPool& pool) {
  const int64_t channels = args.weight.shape[0];
  const int64_t width = args.weight.shape[1];
  const int64_t row_stride = args.qkvf.shape[1];
  constexpr int64_t kBlock = 256;
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  pool.parallel_for(static_cast<int64_t>(segments.size()) * blocks, [&](int64_t unit) {
    const Segment& segment = segments[unit / blocks];
    const int64_t begin = unit % blocks * kBlock;
    const int64_t n = std::min(kBlock, channels - begin);
    const float* weight = args.weight.f32() + begin * width;
    float* history = args.history + segment.state * (width - 1) * channels + begin;
    for (int64_t t = 0; t < segment.count; ++t) {
      float* row = args.qkvf.f32() + (segment.first + t) * row_stride + begin;
      for (int64_t c = 0; c < n; ++c) {
        const float newest = row[c];
        float sum = 0;
        for (int64_t j = 0; j + 1 < width; ++j) {
          float& past = history[j * channels + c];
          sum += weight[c * width + j] * past;
          past = j + 2 < width ? history[(j + 1) * channels + c] : newest;
        }
        row[c] = sum + weight[c * width + width - 1] * newest;
      }
      silu(row, n);
    }
  });
}

}  // namespace gsa::cpu
