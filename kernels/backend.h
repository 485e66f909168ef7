#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/host_floats.h"
#include "kernels/sampling.h"
#include "kernels/shape.h"
#include "kernels/tensor.h"

namespace gsa {

// Dimension letters used everywhere below:
//   T tokens in a step, B segments (sequences) in it, R rows of logits asked for
//   D hidden, N vocabulary, F feed-forward
//   H query heads, G key/value heads (query head h reads memory h / (H/G))
//   K key dim per head, V value dim per head, M slots per head

// Memory of a backend, freed on destruction.
class Buffer {
 public:
  using Deleter = std::function<void(void*)>;

  Buffer() = default;
  Buffer(void* data, size_t bytes, Deleter deleter)
      : data_(data, std::move(deleter)), bytes_(bytes) {}

  void* data() const { return data_.get(); }
  float* f32() const { return static_cast<float*>(data_.get()); }
  size_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<void, Deleter> data_{nullptr, [](void*) {}};
  size_t bytes_ = 0;
};

// A run of consecutive tokens of one sequence. Decode is a segment of one.
struct Segment {
  int32_t state = 0;  // index in the pool
  int32_t first = 0;  // row of its first token in the packed step
  int32_t count = 0;
};

// What one step computes. Segments cover the tokens in order, without gaps; no state stands in two
// segments.
struct Step {
  std::span<const int32_t> tokens;      // [T] ids in [0, N)
  std::span<const Segment> segments;    // [B]
  std::span<const int32_t> logit_rows;  // [R] rows of the packed step whose logits are wanted
  // [T] or empty. Where it is not: token t is the one that the latest queue_sample() drew for its
  // row drawn_rows[t], which the host may not know yet, and tokens[t] means nothing.
  std::span<const int32_t> drawn_rows{};
  // Who issues the operations, the memory that holds the states and what their memories are stored
  // as: steps that agree in these and in T, B and R, all tokens decoded, issue the same operations
  // on the same memory.
  const void* model = nullptr;
  const void* states = nullptr;
  DType state_type = DType::kF32;
};

// The most that a step will ever hold; scratch memory is taken for it once.
struct StepLimits {
  int64_t tokens = 0;
  int64_t segments = 0;
  int64_t logit_rows = 0;
};

// y = W norm(x) or, with accumulate, y += W norm(x), where
// norm(x) = x / sqrt(mean(x^2) + eps) * norm_weight (RMSNorm, Zhang & Sennrich 2019).
struct NormProject {
  TensorView x;            // [rows, cols] f32
  TensorView norm_weight;  // [cols] f32, or null for ones
  double eps = 0;
  TensorView weight;  // [out, cols]
  TensorView apart =
      {};  // rows behind weight's that have a type of their own, or null; then out is both
  bool accumulate = false;
  TensorView y;  // [rows, out] f32
};

// Depthwise causal convolution of width C over the q, k, v columns of qkvf, then SiLU, in place.
struct Convolve {
  TensorView weight;         // [channels, C] f32, oldest input first
  TensorView qkvf;           // [T, >= channels] f32; the first `channels` columns change
  float* history = nullptr;  // this layer's last inputs of every state, [states, C-1, channels]
};

// The GSA recurrence (arXiv 2409.07146) for every token in order, from the projections to the
// input of the output norm:
//   q, k = phi(q), phi(k); v = silu(v); g = sigmoid(f)^(1/normalizer); s = 1 - g
//   Hk = Hk diag(g) + k (x) s; p = softmax_M(q . Hk); Hv = diag(g) Hv + s (x) v; o = silu(p . Hv)
//
// Memories are stored as f32, f16 or bf16; arithmetic is float32 whatever they are. 16 bits are
// rounded to nearest even: on a CPU after every token, which then reads what is stored, so that it
// does not matter where steps begin; on a GPU in the same way for a segment of one token, but once
// at the end of a longer one.
struct Mix {
  MixShape shape;
  FeatureMap feature_map = FeatureMap::kSwish;
  TensorView feature_weight;  // [K, K], for kT2R
  double normalizer = 8;
  TensorView qkvf;  // [T, H*K + G*K + G*V + G*M] f32; used as scratch
  DType state_type = DType::kF32;
  void* hk = nullptr;  // this layer's memories of every state, [states, G, K, M]
  void* hv = nullptr;  // [states, G, M, V]
  TensorView out;      // [T, H*V] f32
};

// x += Wdown (silu(Wgate n) * Wup n) with n = norm(x).
struct GatedMlp {
  TensorView norm_weight;  // [D] f32, or null
  double eps = 0;
  TensorView gate_up;  // [2F, D], gate rows first
  TensorView down;     // [D, F]
  TensorView hidden;   // [T, F] f32 scratch
  TensorView x;        // [T, D] f32, in and out
};

// The first `count` elements of each of `rows` rows of device memory: of a state, its part of an
// array of all layers and states.
struct Slices {
  void* data = nullptr;
  DType type = DType::kF32;  // or f16, bf16
  int64_t rows = 0;
  int64_t count = 0;
  int64_t pitch = 0;  // elements from one row to the next
};

// Memory, a stream, and every fused operation of a GSA model on one device.
//
// Operations are queued in order on the backend's stream; they may still run when the call returns.
// download(), score(), collect_sample() and sample() alone wait for what they return; what
// copy_out() returns is waited for by who reads it. A backend is used by one thread at a time.
// Shapes are the caller's part: operations assert them. Device failures throw gsa::Error.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;  // "cpu", "cuda"
  // For people: the processor, threads, instruction set.
  virtual std::string description() const = 0;
  virtual int threads() const = 0;

  // Zeroed device memory, 64-byte aligned; throws with the size asked for where there is none.
  virtual Buffer allocate(size_t bytes) = 0;
  // Makes weights usable by the operations: a view of the same memory on a CPU, a copy owned by
  // the backend on a device. The host memory must outlive the backend's use of it.
  virtual TensorView import_weights(const TensorView& host) = 0;
  virtual void upload(const void* host, size_t bytes, void* device) = 0;
  virtual void download(const void* device, size_t bytes, void* host) = 0;
  // The floats as what is queued now leaves them; they come while later operations run.
  virtual HostFloats copy_out(const float* device, int64_t count) = 0;
  // The way back, without waiting where copy_out() brought them. They may be given up at once.
  virtual void copy_in(const HostFloats& host, float* device) = 0;
  // The slices as floats, one behind the other; and the way back, rounded to nearest even.
  virtual void gather(const Slices& from, float* floats) = 0;
  virtual void scatter(const float* floats, const Slices& to) = 0;
  virtual void fill(const Slices& to, float value) = 0;
  void fill(float* device, int64_t count, float value) {
    fill({.data = device, .rows = 1, .count = count}, value);
  }
  virtual void synchronize() = 0;
  // Tokens of a step at which prefill is about as fast as it gets.
  virtual int64_t preferred_step_tokens() const = 0;
  // Bytes of device memory that could be allocated now.
  virtual int64_t free_memory() const = 0;
  // Bytes per second that reading memory reaches now, with all threads; takes about a second.
  virtual double measure_read_bandwidth() = 0;

  // Numbers of sequences, up to `most`, whose steps of decoding have something set up when they are
  // first met, as far as that is worth doing beforehand. Those between are filled up to one of
  // these.
  virtual std::vector<int64_t> decode_sizes(int64_t most) const {
    (void)most;
    return {};
  }
  // Takes scratch for the widest step of a model, when its weights have been imported and before
  // its first step. REQUIRES: models that share a backend agree in all of it.
  virtual void reserve(const StepLimits& limits, const MixShape& shape, int64_t D, int64_t F) = 0;

  // Tells the backend what the operations up to end_step() work on. The spans must live until the
  // next begin_step(). Returns whether the operations must be issued: false where the backend has
  // recorded them in an earlier step and replays them in end_step().
  [[nodiscard]] virtual bool begin_step(const Step& step) = 0;
  // Whether the operations must be issued once more, and the step ended again: true where the
  // backend has only looked at them.
  [[nodiscard]] virtual bool end_step() = 0;

  virtual void embed(const TensorView& table, const TensorView& x) = 0;  // [N, D] -> [T, D] f32
  virtual void norm_project(const NormProject& args) = 0;
  virtual void convolve(const Convolve& args) = 0;
  virtual void mix(const Mix& args) = 0;
  virtual void gated_mlp(const GatedMlp& args) = 0;
  // Rows step.logit_rows of x [T, D] f32 -> [R, D] f32.
  virtual void gather_logit_rows(const TensorView& x, const TensorView& out) = 0;

  // Log-probability of one given token per row of logits [rows, N] f32, and of the `top` likeliest.
  virtual void score(const TensorView& logits, std::span<const int32_t> targets, int32_t top,
                     std::span<SampleResult> results) = 0;

  // Whether the device works on what is queued while the host does something else, so that it would
  // stand still between two steps if the second were queued only when the first is read.
  virtual bool asynchronous() const { return false; }

  // Seconds, by the device's clock, of all steps whose tokens are drawn and collected, from
  // begin_step() to the end of the draw; 0 where host and device are the same.
  virtual double step_seconds() const { return 0; }

  // Queues the draw of one token per row of logits [rows, N] f32; what `rows` refers to is copied.
  // REQUIRES: at least one row, fewer than two draws queued and not collected.
  virtual void queue_sample(const TensorView& logits, std::span<const SampleRow> rows) = 0;
  // Waits for the oldest draw not yet collected and returns its results in order. A row whose
  // logits hold a NaN throws; the draw is then collected all the same.
  virtual void collect_sample(std::span<SampleResult> results) = 0;
  // Forgets draws not collected and a step not ended. Throws nothing, whatever the device does.
  virtual void drop_samples() = 0;
  // Both in one. REQUIRES: every draw is collected.
  void sample(const TensorView& logits, std::span<const SampleRow> rows,
              std::span<SampleResult> results);
};

// The CPU. threads 0: one per physical core.
std::unique_ptr<Backend> make_cpu_backend(int threads);

// The first NVIDIA GPU; throws where there is none or the program was built without CUDA.
std::unique_ptr<Backend> make_cuda_backend();
// Whether make_cuda_backend() would find a GPU.
bool cuda_available();

// The device by the name a user gives; throws where it is absent. "auto" is "cuda" where a GPU is
// available, else "cpu".
std::unique_ptr<Backend> make_backend(const std::string& device, int threads);

}  // namespace gsa
