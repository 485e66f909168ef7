#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/prefix_cache.h"
#include "engine/queued_step.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "kernels/backend.h"
#include "model/gsa_model.h"
#include "model/state_pool.h"

namespace gsa {

struct EngineOptions {
  std::string device = "auto";     // auto, cpu or cuda
  int threads = 0;                 // 0: one per physical core
  int64_t states = 0;              // sequences that run at once; 0: as many as memory_bytes hold
  int64_t memory_bytes = 0;        // for states; 0 with states 0: one state
  DType state_type = DType::kF32;  // of the memories, one of kStateTypes
  int64_t step_tokens = 0;     // most in a step, by which prompts are cut; 0: the device's choice
  int64_t queue_limit = 1024;  // requests that may wait
  int64_t cache_bytes = 0;     // of host memory for the prefix cache; 0: none
  // Queues a step before the tokens of the one before are read; no value: where the device works
  // while the host does something else. Results are the same.
  std::optional<bool> run_ahead{};
  GsaModel::LoadProgress on_load{};  // called by the constructor while weights go to the device
};

struct EngineStats {
  int64_t steps = 0;
  int64_t steps_ahead = 0;    // of them queued before the tokens of the step before were read
  int64_t prompt_tokens = 0;  // computed, not taken from the cache
  int64_t output_tokens = 0;
  int64_t waiting = 0;
  int64_t running = 0;
  double device_seconds = 0;  // Backend::step_seconds()
  PrefixCache::Counters cache;
};

class Sequence;
struct Task;

// Runs requests on one model with continuous batching, on a thread of its own.
//
// On a GPU a step may be one kernel whose blocks wait for each other on all multiprocessors: one
// engine at a time may work on a device.
//
// Every function may be called from any thread, and from callbacks except where it says so.
// Callbacks run on the engine's thread. A request's tokens depend on the request alone, not on what
// else is in the batch, when it came or how many threads there are.
//
// Running ahead. Where the device works on its own, a step is queued before the tokens of the one
// before are read: it takes them from the device's memory, and while it runs the host reads,
// streams and decides. That is so whenever the same sequences just go on; a step that admits a
// request, reads a prompt or follows the end of a kept state is queued once the one before is read.
// A sequence that turns out to have ended was computed once in vain, which nobody sees: the result
// is dropped, and its state is given on in the order of the device's work. Where the state after
// the last token is wanted, that step was needed anyhow.
//
// Fork and rewind. A request with keep_snapshot hands back the state after its last token; a later
// request goes on from it (Request::from) without reading the text again. The same snapshot may be
// given any number of times: to several requests at once (a fork), or again after others have gone
// on from it (a rewind, an undo). Both are exact. A request with n > 1 forks inside the engine,
// after its prompt: each completion takes a state of its own.
class Engine {
 public:
  // Throws gsa::Error where the device is absent or the states do not fit, with the figures.
  Engine(std::shared_ptr<const LoadedModel> model, const EngineOptions& options);

  // Cancels what is left and waits for the callbacks. For a graceful end call stop_accepting() and
  // drain() before. Not from a callback.
  ~Engine();

  const LoadedModel& model() const { return *model_; }
  const Backend& backend() const { return *backend_; }
  int64_t capacity() const { return states_.capacity(); }
  int64_t step_tokens() const { return scheduling_.step_tokens; }
  int64_t weight_bytes() const { return gsa_model_.weight_bytes(); }
  DType state_type() const { return states_.type(); }
  int64_t state_bytes() const { return states_.state_bytes(); }  // of one sequence

  // Queues a request and returns at once. `on_result` is called exactly once for every id that is
  // returned, possibly before this returns. Nothing is returned when the queue is full, or after
  // stop_accepting(). Throws RequestError for a request that could never run.
  std::optional<RequestId> submit(Request request, ResultCallback on_result,
                                  DeltaCallback on_delta = nullptr);

  // The same for callers that wait: throws gsa::Error instead of returning nothing.
  std::future<Result> submit(Request request);

  // Ends a request at the next step boundary; its result has what was generated, and the snapshots
  // of what was, if it asked for them. Unknown ids are ignored.
  void cancel(RequestId id);

  // From now on no request is taken; those that wait or run go on to their end.
  void stop_accepting();
  bool accepting() const;

  // Waits until no request waits or runs and every result is delivered. Not from a callback.
  void drain();
  // The same for at most this long; false if requests are left then.
  bool drain_for(std::chrono::steady_clock::duration limit);

  EngineStats stats() const;

 private:
  using Clock = std::chrono::steady_clock;

  void loop();
  void step();
  std::vector<std::unique_ptr<Task>> take_expired(Clock::time_point now);
  Scheduler::Plan schedule();
  void begin(Task& task);
  QueuedStep queue(const Scheduler::Plan& plan);
  bool can_run_ahead(const QueuedStep& step) const;
  QueuedStep queue_after(const QueuedStep& step);
  void launch(QueuedStep& step, std::span<const SampleRow> draws);
  void complete(const QueuedStep& step);
  int64_t decode_done(const QueuedStep& step);
  void prefill_done(const QueuedStep::Prefill& prefill, const TensorView& logits);
  void sample_first(Task& task, const TensorView& logits);
  void accept(Task& task, Sequence& sequence, SampleResult result);
  bool keeps_end(const Task& task) const;
  void close(const Task& task, Sequence& sequence, const TensorView& logits);
  std::shared_ptr<const Snapshot> take_snapshot(const StateHandle& state,
                                                std::span<const int32_t> tokens,
                                                const TensorView& logits);
  void finish_completed();
  void finish(std::unique_ptr<Task> task);
  void fail_running(const std::string& message);
  void fail(RequestId id, const std::string& message);
  Task& task(RequestId id) const;

  std::shared_ptr<const LoadedModel> model_;
  std::unique_ptr<Backend> backend_;
  StatePool states_;
  Scheduler::Options scheduling_;
  GsaModel gsa_model_;
  Buffer restored_logits_;  // [1, N] of a snapshot
  PrefixCache cache_;
  bool run_ahead_;
  Batch batch_;
  QueuedStep ahead_;  // queued before the tokens of the step before were read; may be empty

  mutable std::mutex mutex_;  // guards all below
  std::condition_variable wake_;
  std::condition_variable idle_;
  Scheduler scheduler_;
  std::unordered_map<RequestId, std::unique_ptr<Task>> tasks_;
  RequestId next_id_ = 1;
  int64_t unfinished_ = 0;  // results not delivered yet
  EngineStats stats_;
  bool accepting_ = true;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace gsa
