#include <algorithm>
#include <cassert>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/device_step.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/host_copier.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matvec.cuh"
#include "kernels/cuda/mix_chunk.cuh"
#include "kernels/cuda/mix_decode.cuh"
#include "kernels/cuda/read_bandwidth.cuh"
#include "kernels/cuda/sample.cuh"
#include "kernels/cuda/small_batch.cuh"
#include "kernels/cuda/step_timer.h"
#include "kernels/cuda/stream_program.h"
#include "kernels/cuda/uploader.h"

namespace gsa {
namespace {

using namespace cuda;

MatVec mat_vec_of(const NormProject& args, int64_t rows) {
  return {.x = args.x.f32(),
          .tokens = static_cast<int>(rows),
          .normalize = true,
          .norm_weight = static_cast<const float*>(args.norm_weight.data),
          .eps = static_cast<float>(args.eps),
          .weight = args.weight,
          .apart = args.apart,
          .accumulate = args.accumulate,
          .y = args.y.f32()};
}

class CudaBackend final : public Backend {
 public:
  CudaBackend();
  ~CudaBackend() override { cudaStreamSynchronize(stream_.get()); }

  std::string_view name() const override { return "cuda"; }
  std::string description() const override { return description_; }
  int threads() const override { return 1; }

  Buffer allocate(size_t bytes) override {
    return cuda::allocate(description_, stream_.get(), bytes);
  }
  TensorView import_weights(const TensorView& host) override;
  void upload(const void* host, size_t bytes, void* device) override;
  void download(const void* device, size_t bytes, void* host) override;
  HostFloats copy_out(const float* device, int64_t count) override {
    return copier_->copy_out(device, count);
  }
  void copy_in(const HostFloats& host, float* device) override { copier_->copy_in(host, device); }
  void gather(const Slices& from, float* floats) override { cuda::gather(alone_, from, floats); }
  void scatter(const float* floats, const Slices& to) override {
    cuda::scatter(alone_, floats, to);
  }
  void fill(const Slices& to, float value) override { cuda::fill(alone_, to, value); }
  void synchronize() override { GSA_CUDA_CHECK(cudaStreamSynchronize(stream_.get())); }
  int64_t preferred_step_tokens() const override { return 4096; }
  int64_t free_memory() const override { return cuda::free_memory(); }
  double measure_read_bandwidth() override { return cuda::measure_read_bandwidth(alone_); }

  std::vector<int64_t> decode_sizes(int64_t most) const override { return bucket_sizes(most); }
  void reserve(const StepLimits& limits, const MixShape& shape, int64_t D, int64_t F) override;
  bool begin_step(const Step& step) override;
  bool end_step() override;
  void embed(const TensorView& table, const TensorView& x) override;
  void norm_project(const NormProject& args) override;
  void convolve(const Convolve& args) override;
  void mix(const Mix& args) override;
  void gated_mlp(const GatedMlp& args) override;
  void gather_logit_rows(const TensorView& x, const TensorView& out) override;
  void score(const TensorView& logits, std::span<const int32_t> targets, int32_t top,
             std::span<SampleResult> results) override;
  bool asynchronous() const override { return true; }
  void queue_sample(const TensorView& logits, std::span<const SampleRow> rows) override;
  void collect_sample(std::span<SampleResult> results) override;
  void drop_samples() override;
  double step_seconds() const override { return timer_.seconds(); }

 private:
  // rows, model, states, their type
  using RecordingKey = std::tuple<int64_t, const void*, const void*, DType>;

  // One of the two products of a NormProject, whose columns of y begin at `first`.
  void project(const NormProject& args, const TensorView& weight, int64_t first);
  void reserve_sampler(const TensorView& logits);
  // After an operation threw while the stream took note of them: it executes again what it is told.
  void leave_capture();
  // The norm of x as the operand of a product with many tokens, in scratch memory.
  void* operand(const TensorView& x, int64_t rows, const TensorView& norm_weight, double eps,
                DType type);

  // Rows of a step that is filled up to its bucket.
  int64_t rows_of(const TensorView& view) const { return view.shape[0] + filled_up_; }

  std::string description_;
  Stream stream_;
  Launch alone_;    // one kernel after the other
  Launch chained_;  // each kernel starts while the one before it ends
  std::unique_ptr<HostCopier> copier_;
  std::unique_ptr<Multiplier> multiplier_;

  std::vector<Buffer> weights_;
  std::unique_ptr<Uploader> uploader_;

  StepLimits limits_;
  DeviceStep step_;
  int64_t filled_up_ = 0;
  size_t element_bytes_ = 2;        // of the widest matrix
  DeviceArray<std::byte> operand_;  // [T, max(D, H*V, F)]
  DeviceArray<std::byte> gate_up_;  // [T, 2F]
  ChunkedMix chunked_mix_;
  Sampler sampler_;
  StepTimer timer_;
  int64_t sampler_rows_ = 0, sampler_vocabulary_ = 0;
  DeviceArray<float> edges_;  // of the convolution

  // How a kind of decoding step is repeated: as one kernel, or as a graph of kernels.
  struct Recording {
    std::unique_ptr<StreamProgram> program;
    GraphExec graph;
    bool executed = false;  // once to the end, by which all that it needs has been set up
  };
  // Those that were seen. Where one kernel cannot do the operations, they are executed the first
  // time and recorded the second.
  std::map<RecordingKey, Recording> recordings_;
  std::unique_ptr<StreamProgram> program_;  // takes note of the operations of this step, or none
  Recording* recording_ = nullptr;          // the one of this step, or none
  bool capturing_ = false;
};

CudaBackend::CudaBackend() {
  const cudaDeviceProp device = find_device();
  GSA_CUDA_CHECK(cudaSetDevice(0));
  GSA_CUDA_CHECK(cudaStreamCreateWithFlags(stream_.out(), cudaStreamNonBlocking));
  description_ = fmt::format("{}, {:.0f} GiB", device.name, device.totalGlobalMem / 0x1p30);
  alone_ = {.stream = stream_.get(),
            .multiprocessors = device.multiProcessorCount,
            .shared_limit = device.sharedMemPerBlockOptin,
            .clusters = device.major >= 9};
  chained_ = alone_;
  chained_.overlap = device.major >= 9;
  copier_ = std::make_unique<HostCopier>(stream_.get());
  multiplier_ = std::make_unique<Multiplier>();
  timer_.reserve();
}

TensorView CudaBackend::import_weights(const TensorView& host) {
  weights_.push_back(allocate(Uploader::device_bytes(host)));
  TensorView view = host;
  view.data = weights_.back().data();
  if (!uploader_) uploader_ = std::make_unique<Uploader>(alone_);
  uploader_->upload(host, view.data);
  if (host.rank == 2) {
    element_bytes_ = std::max(element_bytes_, dtype_bytes(operand_type(host.dtype)));
    multiplier_->expect(view);
  }
  return view;
}

void CudaBackend::upload(const void* host, size_t bytes, void* device) {
  GSA_CUDA_CHECK(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_.get()));
  synchronize();  // the caller's memory may go away
}

void CudaBackend::download(const void* device, size_t bytes, void* host) {
  GSA_CUDA_CHECK(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_.get()));
  synchronize();
}

void CudaBackend::reserve(const StepLimits& limits, const MixShape& shape, int64_t D, int64_t F) {
  uploader_.reset();  // all weights are there
  synchronize();
  if (std::max(limits.tokens, limits.logit_rows) > kSmallMatVecTokens) multiplier_->reserve();
  recordings_.clear();
  edges_ = {};
  limits_ = limits;
  step_.reserve(limits);
  if (limits.tokens > 1 || limits.logit_rows > kMatVecTokens) {
    const int64_t rows = std::max(limits.tokens, limits.logit_rows);
    operand_ = DeviceArray<std::byte>(rows * std::max({D, shape.H * shape.V, F}) * element_bytes_);
    const size_t gate_up_bytes = limits.tokens * 2 * F * element_bytes_;
    gate_up_ = DeviceArray<std::byte>(gate_up_bytes);
    // For compute-sanitizer's initcheck, which does not see what cuBLASLt's kernels write.
    GSA_CUDA_CHECK(cudaMemsetAsync(gate_up_.get(), 0, gate_up_bytes, stream_.get()));
    chunked_mix_.reserve(limits.tokens, limits.segments, shape);
  }
}

void CudaBackend::leave_capture() {
  if (!capturing_) return;
  capturing_ = false;
  Graph unfinished;
  cudaStreamEndCapture(stream_.get(), unfinished.out());
}

bool CudaBackend::begin_step(const Step& step) {
  leave_capture();
  recording_ = nullptr;
  program_.reset();
  const int64_t T = static_cast<int64_t>(step.tokens.size());
  const bool decoding = std::all_of(step.segments.begin(), step.segments.end(),
                                    [](const Segment& s) { return s.count == 1; });
  const bool recordable =
      decoding && step.model != nullptr && step.logit_rows.size() == step.tokens.size();
  const int64_t rows = recordable ? bucket_of(T) : T;
  const bool fits = rows <= std::min(limits_.tokens, limits_.logit_rows);
  filled_up_ = fits ? rows - T : 0;
  timer_.begin(stream_.get());
  step_.upload(step, T + filled_up_, stream_.get());
  take_tokens(alone_, sampler_.tokens(), step_.drawn_rows(),
              static_cast<int64_t>(step.drawn_rows.size()), step_.tokens());
  if (!recordable) return true;
  recording_ = &recordings_[{T + filled_up_, step.model, step.states, step.state_type}];
  if (recording_->program || recording_->graph) return false;
  if (recording_->executed) {
    GSA_CUDA_CHECK(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    capturing_ = true;
  } else if (T <= kStreamTokens) {
    program_ = std::make_unique<StreamProgram>(chained_, T, step_.tokens(), step_.decode_rows());
  }
  return true;
}

bool CudaBackend::end_step() {
  if (program_) {
    std::unique_ptr<StreamProgram> program = std::move(program_);
    if (!program->finish()) return true;
    program->run();
    recording_->program = std::move(program);
    return false;
  }
  if (capturing_) {
    capturing_ = false;
    Graph graph;
    GSA_CUDA_CHECK(cudaStreamEndCapture(stream_.get(), graph.out()));
    GSA_CUDA_CHECK(cudaGraphInstantiate(recording_->graph.out(), graph.get(), 0));
  }
  if (recording_ == nullptr) return false;
  if (recording_->program) {
    recording_->program->run();
  } else if (recording_->graph) {
    GSA_CUDA_CHECK(cudaGraphLaunch(recording_->graph.get(), stream_.get()));
  } else {
    recording_->executed = true;
  }
  return false;
}

void CudaBackend::embed(const TensorView& table, const TensorView& x) {
  if (program_) return program_->embed(table);
  // The first kernel waits for everything before it: those after it may read states early.
  cuda::embed(alone_, table, step_.tokens(), rows_of(x), x.f32());
}

void* CudaBackend::operand(const TensorView& x, int64_t rows, const TensorView& norm_weight,
                           double eps, DType type) {
  make_operand(chained_, {.x = x.f32(),
                          .rows = rows,
                          .cols = x.shape[1],
                          .norm_weight = static_cast<const float*>(norm_weight.data),
                          .eps = static_cast<float>(eps),
                          .type = type,
                          .out = operand_.get()});
  return operand_.get();
}

void CudaBackend::norm_project(const NormProject& args) {
  if (program_) return program_->norm_project(args);
  const int64_t rows = rows_of(args.x);
  SmallBatch batch{.tokens = rows,
                   .weight = args.weight,
                   .apart = args.apart,
                   .accumulate = args.accumulate,
                   .y = args.y.data};
  if (small_batch_takes(chained_, batch)) {
    batch.x = operand(args.x, rows, args.norm_weight, args.eps, DType::kBF16);
    return small_batch(chained_, batch);
  }
  const MatVec all = mat_vec_of(args, rows);
  if (mat_vec_takes(all)) return mat_vec(chained_, all);
  project(args, args.weight, 0);
  if (args.apart) project(args, args.apart, args.weight.shape[0]);
}

void CudaBackend::project(const NormProject& args, const TensorView& weight, int64_t first) {
  const int64_t rows = rows_of(args.x), stride = args.y.shape[1];
  float* y = args.y.f32() + first;
  if (rows <= mat_vec_tokens(weight.dtype)) {
    MatVec part = mat_vec_of(args, rows);
    part.weight = weight;
    part.apart = {};
    part.y = y;
    part.y_stride = static_cast<int>(stride);
    return mat_vec(chained_, part);
  }
  const void* x = operand(args.x, rows, args.norm_weight, args.eps, operand_type(weight.dtype));
  multiplier_->multiply(stream_.get(), {.x = x,
                                        .tokens = rows,
                                        .weight = weight,
                                        .accumulate = args.accumulate,
                                        .y = y,
                                        .y_stride = stride});
}

void CudaBackend::convolve(const Convolve& args) {
  if (program_) return program_->other();
  const int64_t channels = args.weight.shape[0], C = args.weight.shape[1];
  if (!edges_.get()) {
    const int64_t tiles = limits_.tokens / kChunk + limits_.segments + 8;
    edges_ = DeviceArray<float>(std::min(tiles, limits_.tokens + 8) * std::max<int64_t>(C - 1, 1) *
                                channels);
  }
  cuda::convolve(chained_, args, step_.segments(), step_.tiles(), step_.tile_count(), edges_.get());
}

void CudaBackend::mix(const Mix& args) {
  if (program_) return program_->mix(args);
  if (args.feature_map == FeatureMap::kT2R) {
    map_heads(chained_, args.feature_weight, rows_of(args.qkvf), args.qkvf.shape[1],
              args.shape.H + args.shape.G, args.qkvf.f32());
  }
  mix_decode(chained_, args, step_.decode_rows(), static_cast<int>(step_.decode_count()));
  if (step_.long_segments() > 0) {
    chunked_mix_.run(chained_, args,
                     {.segments = step_.segments(),
                      .segment_count = static_cast<int>(step_.long_segments()),
                      .tiles = step_.tiles(),
                      .tile_count = static_cast<int>(step_.long_tiles())});
  }
}

void CudaBackend::gated_mlp(const GatedMlp& args) {
  if (program_) return program_->gated_mlp(args);
  const int64_t rows = rows_of(args.x), F = args.hidden.shape[1];
  void* const hidden = gate_up_.get();
  SmallBatch gate_up{.tokens = rows, .weight = args.gate_up, .gated = true, .y = hidden};
  const SmallBatch down{
      .x = hidden, .tokens = rows, .weight = args.down, .accumulate = true, .y = args.x.data};
  if (small_batch_takes(chained_, gate_up) && small_batch_takes(chained_, down)) {
    gate_up.x = operand(args.x, rows, args.norm_weight, args.eps, DType::kBF16);
    small_batch(chained_, gate_up);
    return small_batch(chained_, down);
  }
  if (rows <= mat_vec_tokens(args.gate_up.dtype)) {
    mat_vec(chained_, {.x = args.x.f32(),
                       .tokens = static_cast<int>(rows),
                       .normalize = true,
                       .norm_weight = static_cast<const float*>(args.norm_weight.data),
                       .eps = static_cast<float>(args.eps),
                       .weight = args.gate_up,
                       .gated = true,
                       .y = args.hidden.f32()});
    return mat_vec(chained_, {.x = args.hidden.f32(),
                              .tokens = static_cast<int>(rows),
                              .weight = args.down,
                              .accumulate = true,
                              .y = args.x.f32()});
  }
  const DType type = operand_type(args.gate_up.dtype);
  const void* x = operand(args.x, rows, args.norm_weight, args.eps, type);
  multiplier_->multiply(
      stream_.get(),
      {.x = x, .tokens = rows, .weight = args.gate_up, .y = gate_up_.get(), .y_type = type});
  silu_multiply(chained_, gate_up_.get(), type, rows, F, operand_.get());
  multiplier_->multiply(stream_.get(), {.x = operand_.get(),
                                        .tokens = rows,
                                        .weight = args.down,
                                        .accumulate = true,
                                        .y = args.x.data});
}

void CudaBackend::gather_logit_rows(const TensorView& x, const TensorView& out) {
  if (program_) return program_->gather_logit_rows();
  take_rows(chained_, x.f32(), step_.logit_rows(), rows_of(out), x.shape[1], out.f32());
}

// At the first call; later ones need no more rows, or are outside of a step's common way, where no
// draw is queued.
void CudaBackend::reserve_sampler(const TensorView& logits) {
  const int64_t rows = std::max(limits_.segments, logits.shape[0]);
  if (rows <= sampler_rows_ && logits.shape[1] <= sampler_vocabulary_) return;
  assert(!sampler_.queued());
  synchronize();
  sampler_rows_ = rows;
  sampler_vocabulary_ = logits.shape[1];
  sampler_ = Sampler();
  sampler_.reserve(rows, logits.shape[1]);
}

void CudaBackend::score(const TensorView& logits, std::span<const int32_t> targets, int32_t top,
                        std::span<SampleResult> results) {
  if (results.empty()) return;
  reserve_sampler(logits);
  sampler_.score(chained_, logits.f32(), logits.shape[1], targets, top, results);
}

void CudaBackend::queue_sample(const TensorView& logits, std::span<const SampleRow> rows) {
  reserve_sampler(logits);
  sampler_.queue(chained_, logits.f32(), logits.shape[1], rows);
  timer_.draw_queued(stream_.get());
}

void CudaBackend::collect_sample(std::span<SampleResult> results) {
  timer_.draw_collected();
  sampler_.collect(results);  // may throw
}

void CudaBackend::drop_samples() {
  leave_capture();
  sampler_.drop();
  timer_.draws_dropped();
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend() { return std::make_unique<CudaBackend>(); }

bool cuda_available() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

}  // namespace gsa
