#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "engine/task.h"
#include "kernels/error.h"

namespace gsa {
namespace {

int64_t choose_capacity(const EngineOptions& options, const GsaConfig& config,
                        const Backend& backend) {
  const int64_t state_bytes = config.state_bytes(options.state_type);
  int64_t states = std::max<int64_t>(options.states, 1);
  if (options.states == 0 && options.memory_bytes > 0) {
    states = options.memory_bytes / state_bytes;
    if (states == 0) {
      throw Error("--memory {:.3f} GiB: one state of this model takes {:.3f} GiB",
                  options.memory_bytes / 0x1p30, state_bytes / 0x1p30);
    }
  }
  const int64_t free = backend.free_memory();
  if (states > free / state_bytes) {
    throw Error("{} states of {:.2f} MiB each need {:.2f} GiB, but {:.2f} GiB are free: at most {}",
                states, state_bytes / 0x1p20, states * (state_bytes / 0x1p30), free / 0x1p30,
                free / state_bytes);
  }
  return states;
}

Scheduler::Options scheduling(const EngineOptions& options, const Backend& backend) {
  const int64_t tokens =
      options.step_tokens > 0 ? options.step_tokens : backend.preferred_step_tokens();
  return {.step_tokens = tokens, .queue_limit = options.queue_limit};
}

StepLimits step_limits(const Scheduler::Options& scheduling, int64_t states) {
  const int64_t tokens = std::max(scheduling.step_tokens, states + scheduling.min_prefill);
  return {.tokens = tokens, .segments = states, .logit_rows = tokens};
}

}  // namespace

Engine::Engine(std::shared_ptr<const LoadedModel> model, const EngineOptions& options)
    : model_(std::move(model)),
      backend_(make_backend(options.device, options.threads)),
      states_(model_->config, *backend_, choose_capacity(options, model_->config, *backend_),
              options.state_type),
      scheduling_(scheduling(options, *backend_)),
      gsa_model_(model_->config, model_->weights, *backend_,
                 step_limits(scheduling_, states_.capacity()), options.on_load),
      restored_logits_(backend_->allocate(model_->config.vocab_size * sizeof(float))),
      cache_(options.cache_bytes),
      run_ahead_(options.run_ahead.value_or(backend_->asynchronous())),
      scheduler_(scheduling_) {
  gsa_model_.prepare(states_);
  thread_ = std::thread([this] { loop(); });
}

Engine::~Engine() {
  {
    const std::lock_guard lock(mutex_);
    accepting_ = false;
    stopping_ = true;
    for (auto& [id, task] : tasks_) task->cancelled = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::optional<RequestId> Engine::submit(Request request, ResultCallback on_result,
                                        DeltaCallback on_delta) {
  check_request(request, model_->config, capacity());
  auto task = std::make_unique<Task>();
  task->request = std::move(request);
  task->on_result = std::move(on_result);
  task->on_delta = std::move(on_delta);
  task->result.submitted = Clock::now();
  const std::lock_guard lock(mutex_);
  if (!accepting_) return std::nullopt;
  const RequestId id = next_id_;
  if (!scheduler_.submit(id, task->request.priority, task->request.n)) return std::nullopt;
  ++next_id_;
  ++unfinished_;
  task->id = id;
  tasks_.emplace(id, std::move(task));
  wake_.notify_one();
  return id;
}

std::future<Result> Engine::submit(Request request) {
  auto promise = std::make_shared<std::promise<Result>>();
  std::future<Result> future = promise->get_future();
  if (!submit(std::move(request), [promise](Result&& r) { promise->set_value(std::move(r)); })) {
    if (!accepting()) throw Error("the engine takes no more requests");
    throw Error("the engine's queue of {} requests is full", scheduling_.queue_limit);
  }
  return future;
}

void Engine::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (const auto it = tasks_.find(id); it != tasks_.end()) it->second->cancelled = true;
}

void Engine::stop_accepting() {
  const std::lock_guard lock(mutex_);
  accepting_ = false;
}

bool Engine::accepting() const {
  const std::lock_guard lock(mutex_);
  return accepting_;
}

void Engine::drain() {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return unfinished_ == 0; });
}

bool Engine::drain_for(Clock::duration limit) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, limit, [this] { return unfinished_ == 0; });
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.waiting = scheduler_.waiting();
  stats.running = scheduler_.running();
  return stats;
}

void Engine::loop() {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
    }
    step();
  }
}

void Engine::step() {
  for (std::unique_ptr<Task>& task : take_expired(Clock::now())) finish(std::move(task));
  try {
    const QueuedStep step = ahead_.empty() ? queue(schedule()) : std::exchange(ahead_, {});
    if (can_run_ahead(step)) ahead_ = queue_after(step);
    complete(step);
  } catch (const std::exception& error) {
    fail_running(error.what());
  }
  finish_completed();
}

// Requests that were cancelled or ran out of time, wherever they stand.
std::vector<std::unique_ptr<Task>> Engine::take_expired(Clock::time_point now) {
  std::vector<std::unique_ptr<Task>> expired;
  const std::lock_guard lock(mutex_);
  for (auto it = tasks_.begin(); it != tasks_.end();) {
    Task& task = *it->second;
    const bool late = task.request.deadline && *task.request.deadline <= now;
    const bool stopping = late || task.cancelled;
    if (!stopping || task.end_for_snapshot(late)) {
      ++it;
      continue;
    }
    if (task.sequences.empty()) task.result.completions.resize(task.request.n);
    const FinishReason reason = late ? FinishReason::kDeadline : FinishReason::kCancelled;
    for (Completion& completion : task.result.completions) completion.finish_reason = reason;
    for (auto& sequence : task.sequences) sequence->end(reason);
    scheduler_.remove(task.id);
    expired.push_back(std::move(it->second));
    it = tasks_.erase(it);
  }
  return expired;
}

// Admits what fits and decides what the next step computes.
Scheduler::Plan Engine::schedule() {
  std::vector<Task*> admitted;
  {
    const std::lock_guard lock(mutex_);
    for (RequestId id : scheduler_.admit(states_.available())) {
      admitted.push_back(tasks_.at(id).get());
    }
  }
  std::erase_if(admitted, [this](Task* task) {
    try {
      begin(*task);
      return false;
    } catch (const std::exception& error) {
      fail(task->id, error.what());
      return true;
    }
  });
  const std::lock_guard lock(mutex_);
  for (const Task* task : admitted) {
    const int64_t left = static_cast<int64_t>(task->context.size()) - task->fed;
    const int64_t cut = task->snapshot_at > task->fed ? task->snapshot_at - task->fed : 0;
    scheduler_.start(task->id, left, cut);
  }
  return scheduler_.plan();
}

// Takes states for an admitted request and restores what is known of its prompt.
void Engine::begin(Task& task) {
  const Request& request = task.request;
  task.result.started = Clock::now();
  for (int32_t i = 0; i < request.n; ++i) task.states.push_back(*states_.acquire());
  std::shared_ptr<const Snapshot> known = request.from;
  if (known) task.context = known->tokens;
  task.context.insert(task.context.end(), request.prompt.begin(), request.prompt.end());
  task.result.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (!known && cache_.enabled() && !request.prompt_logprobs) {
    PrefixCache::Lookup lookup = cache_.find(task.context);
    known = std::move(lookup.hit);
    task.snapshot_at = lookup.junction;
    if (known) task.result.cached_tokens = static_cast<int64_t>(known->tokens.size());
  }
  if (!known) return;
  states_.import_state(known->state, task.states[0]);
  task.fed = static_cast<int64_t>(known->tokens.size());
  if (task.fed < static_cast<int64_t>(task.context.size())) return;
  const int64_t N = model_->config.vocab_size;
  backend_->copy_in(known->logits, restored_logits_.f32());
  sample_first(task, TensorView(restored_logits_.data(), DType::kF32, {1, N}));
}

// Delivers every task whose completions have all ended.
void Engine::finish_completed() {
  std::vector<std::unique_ptr<Task>> completed;
  {
    const std::lock_guard lock(mutex_);
    for (auto it = tasks_.begin(); it != tasks_.end();) {
      if (!it->second->completed()) {
        ++it;
        continue;
      }
      scheduler_.remove(it->first);
      completed.push_back(std::move(it->second));
      it = tasks_.erase(it);
    }
  }
  for (std::unique_ptr<Task>& task : completed) finish(std::move(task));
}

void Engine::finish(std::unique_ptr<Task> task) {
  ahead_.forget(*task);
  for (auto& sequence : task->sequences) {
    task->result.completions.push_back(std::move(sequence->completion));
  }
  task->result.finished = Clock::now();
  task->sequences.clear();
  task->states.clear();
  if (task->on_result) task->on_result(std::move(task->result));
  const std::lock_guard lock(mutex_);
  if (--unfinished_ == 0) idle_.notify_all();
}

// A step failed: every admitted request ends with the message; the waiting ones go on.
void Engine::fail_running(const std::string& message) {
  ahead_ = {};
  backend_->drop_samples();
  std::vector<RequestId> running;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, task] : tasks_) {
      if (task->admitted()) running.push_back(id);
    }
  }
  for (RequestId id : running) fail(id, message);
}

void Engine::fail(RequestId id, const std::string& message) {
  std::unique_ptr<Task> task;
  {
    const std::lock_guard lock(mutex_);
    scheduler_.remove(id);
    task = std::move(tasks_.extract(id).mapped());
  }
  task->result.error = message;
  if (task->sequences.empty()) task->result.completions.resize(task->request.n);
  for (auto& sequence : task->sequences) {
    sequence->end(FinishReason::kError);
    sequence->completion.finish_reason = FinishReason::kError;
  }
  finish(std::move(task));
}

Task& Engine::task(RequestId id) const {
  const std::lock_guard lock(mutex_);
  return *tasks_.at(id);
}

}  // namespace gsa
