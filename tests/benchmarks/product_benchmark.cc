// How fast the CPU multiplies many tokens with a matrix: our kernels for each type of weights and,
// where the program was built with oneDNN, its float32 and bf16 kernels on weights that it packed
// beforehand.
//
//   product_benchmark [Google Benchmark's flags]
//
// The tokens are float32, and rows x columns those of a matrix of the 1.3B model. bf16 of oneDNN
// rounds the tokens too, which ours never does. OMP_NUM_THREADS must be the number of cores, as it
// is by default: ours uses one thread for each.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#ifdef GSA_WITH_DNNL
#include <dnnl.hpp>
#endif

#include "kernels/backend.h"
#include "kernels/half.h"
#include "kernels/quantized.h"

namespace gsa {
namespace {

constexpr int64_t kTokens = 512;

std::vector<float> normal(int64_t count) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// Weights of any type: halves between 1 and 2, integers at random.
std::vector<uint16_t> random_weights(DType dtype, int64_t rows, int64_t columns) {
  std::mt19937 generator(2);
  std::vector<uint16_t> words((rows * row_bytes(dtype, columns) + 1) / 2);
  for (uint16_t& word : words) word = static_cast<uint16_t>(0x3c00 | (generator() & 0x037f));
  return words;
}

void count_flops(benchmark::State& state) {
  state.counters["FLOP/s"] = benchmark::Counter(2.0 * kTokens * state.range(0) * state.range(1),
                                                benchmark::Counter::kIsIterationInvariantRate);
}

void ours(benchmark::State& state, DType dtype) {
  const int64_t rows = state.range(0), columns = state.range(1);
  const auto backend = make_cpu_backend(0);
  backend->reserve({.tokens = kTokens, .segments = 1, .logit_rows = 1},
                   {.H = 1, .G = 1, .K = 8, .V = 8, .M = 8}, columns, columns);
  std::vector<uint16_t> words = random_weights(dtype, rows, columns);
  const TensorView weight(words.data(), dtype, {rows, columns});
  const Buffer x = backend->allocate(kTokens * columns * sizeof(float));
  const Buffer y = backend->allocate(kTokens * rows * sizeof(float));
  std::ranges::copy(normal(kTokens * columns), x.f32());
  const std::vector<int32_t> tokens(kTokens);
  const Segment segment{.count = kTokens};
  for (auto _ : state) {
    if (!backend->begin_step({.tokens = tokens, .segments = {&segment, 1}, .logit_rows = {}}))
      continue;
    backend->norm_project({.x = TensorView(x.data(), DType::kF32, {kTokens, columns}),
                           .norm_weight = {},
                           .eps = 1e-6,
                           .weight = weight,
                           .y = TensorView(y.data(), DType::kF32, {kTokens, rows})});
    (void)backend->end_step();
  }
  count_flops(state);
}

#ifdef GSA_WITH_DNNL
void dnnl_packed(benchmark::State& state, dnnl::memory::data_type type) {
  using dnnl::memory;
  const int64_t rows = state.range(0), columns = state.range(1);
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto f32 = memory::data_type::f32;
  const auto row_major = memory::format_tag::ab;
  const dnnl::matmul::primitive_desc product(
      dnnl::matmul::desc({{kTokens, columns}, type, row_major},
                         {{columns, rows}, type, memory::format_tag::any},
                         {{kTokens, rows}, f32, row_major}),
      engine);
  memory x(product.src_desc(), engine), w(product.weights_desc(), engine);
  memory y(product.dst_desc(), engine);
  const auto put = [&](int64_t count, const memory::desc& plain, memory& to) {
    std::vector<float> values = normal(count);
    memory from(plain, engine, values.data());
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
  };
  put(kTokens * columns, {{kTokens, columns}, f32, row_major}, x);
  put(columns * rows, {{columns, rows}, f32, memory::format_tag::ba}, w);
  const dnnl::matmul matmul(product);
  for (auto _ : state) {
    matmul.execute(stream, {{DNNL_ARG_SRC, x}, {DNNL_ARG_WEIGHTS, w}, {DNNL_ARG_DST, y}});
    stream.wait();
  }
  count_flops(state);
}
#endif

void add(const std::string& name, const auto& run) {
  benchmark::RegisterBenchmark(name.c_str(), run)
      ->Args({4096, 2048})
      ->Args({2048, 5632})
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

}  // namespace
}  // namespace gsa

int main(int argc, char** argv) {
  using gsa::DType;
  benchmark::Initialize(&argc, argv);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kQ8, DType::kQ4}) {
    gsa::add("gsa/" + std::string(gsa::dtype_name(dtype)),
             [dtype](benchmark::State& state) { gsa::ours(state, dtype); });
  }
#ifdef GSA_WITH_DNNL
  for (auto [name, type] : {std::pair("oneDNN/f32", dnnl::memory::data_type::f32),
                            std::pair("oneDNN/bf16", dnnl::memory::data_type::bf16)}) {
    gsa::add(name, [type = type](benchmark::State& state) { gsa::dnnl_packed(state, type); });
  }
#endif
  benchmark::RunSpecifiedBenchmarks();
}
