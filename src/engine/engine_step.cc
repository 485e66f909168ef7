// What the engine does in a step: queueing it, and handing on what it computed.
#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/engine.h"
#include "engine/task.h"

namespace gsa {
namespace {

Logits logits_wanted(const Task& task, const Scheduler::Chunk& chunk) {
  if (task.request.prompt_logprobs) return Logits::kAll;
  const bool junction = task.fed + chunk.count == task.snapshot_at;
  return chunk.last || junction ? Logits::kLast : Logits::kNone;
}

}  // namespace

QueuedStep Engine::queue(const Scheduler::Plan& plan) {
  QueuedStep step;
  std::vector<SampleRow> draws;
  batch_.clear();
  for (RequestId id : plan.decode) {
    Task& owner = task(id);
    for (auto& sequence : owner.sequences) {
      if (sequence->ended() && !sequence->closing) continue;
      const int32_t token = sequence->last_token();
      batch_.add(sequence->state, {&token, 1}, Logits::kLast);
      step.decode.push_back({&owner, sequence.get()});
      draws.push_back(sequence->sample_row());
    }
  }
  for (const Scheduler::Chunk& chunk : plan.prefill) {
    Task& owner = task(chunk.id);
    const std::span<const int32_t> tokens(owner.context);
    const Logits wanted = logits_wanted(owner, chunk);
    batch_.add(owner.states[0], tokens.subspan(owner.fed, chunk.count), wanted);
    step.prefill.push_back({&owner, chunk, wanted});
  }
  launch(step, draws);
  return step;
}

// Whether the step after this one is known before this one's tokens are: the same sequences go on.
bool Engine::can_run_ahead(const QueuedStep& step) const {
  if (!run_ahead_ || !step.prefill.empty()) return false;
  // A closing sequence's state and logits are those of this very step.
  const bool closes = std::any_of(
      step.decode.begin(), step.decode.end(),
      [](const QueuedStep::Decode& d) { return d.sequence != nullptr && d.sequence->closing; });
  if (closes) return false;
  const std::lock_guard lock(mutex_);
  return scheduler_.only_decodes(states_.available());
}

// The step after this one, whose tokens stand on the device alone. A sequence that this one's
// token ends comes along in vain, unless its end is kept: then this is its closing step.
QueuedStep Engine::queue_after(const QueuedStep& step) {
  QueuedStep next;
  next.ahead = true;
  std::vector<SampleRow> draws;
  batch_.clear();
  for (size_t i = 0; i < step.decode.size(); ++i) {
    const auto [owner, sequence] = step.decode[i];
    if (sequence == nullptr || sequence->ended()) continue;
    if (sequence->draws_its_last() && !keeps_end(*owner)) continue;
    const int32_t row = static_cast<int32_t>(i);
    batch_.add_drawn(sequence->state, row, Logits::kLast);
    next.decode.push_back({owner, sequence});
    draws.push_back(sequence->sample_row_after(row));
  }
  launch(next, draws);
  return next;
}

// Queues the forward pass of batch_ and the draw of the decoding sequences' tokens.
void Engine::launch(QueuedStep& step, std::span<const SampleRow> draws) {
  if (step.empty()) return;  // what was to decode had ended with its first token
  step.logits = gsa_model_.forward(batch_, states_);
  if (draws.empty()) return;
  backend_->queue_sample(step.logits.rows(0, static_cast<int64_t>(draws.size())), draws);
}

// Waits for the step and hands on what it computed.
void Engine::complete(const QueuedStep& step) {
  if (step.empty()) return;
  const int64_t decoded = decode_done(step);
  int64_t prompt_tokens = 0;
  int64_t row = static_cast<int64_t>(step.decode.size());
  for (const QueuedStep::Prefill& p : step.prefill) {
    const int64_t rows = p.wanted == Logits::kAll ? p.chunk.count : p.wanted == Logits::kLast;
    prefill_done(p, step.logits.rows(row, rows));
    prompt_tokens += p.chunk.count;
    row += rows;
  }
  const std::lock_guard lock(mutex_);
  ++stats_.steps;
  stats_.steps_ahead += step.ahead;
  stats_.output_tokens += decoded;
  stats_.prompt_tokens += prompt_tokens;
  stats_.device_seconds = backend_->step_seconds();
  stats_.cache = cache_.counters();
}

// Returns how many sequences had use for the step.
int64_t Engine::decode_done(const QueuedStep& step) {
  if (step.decode.empty()) return 0;
  std::vector<SampleResult> results(step.decode.size());
  backend_->collect_sample(results);
  int64_t decoded = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const auto [owner, sequence] = step.decode[i];
    if (sequence == nullptr) continue;
    if (sequence->closing) {
      close(*owner, *sequence, step.logits.rows(static_cast<int64_t>(i), 1));
    } else if (!sequence->ended()) {
      accept(*owner, *sequence, std::move(results[i]));
    } else {
      continue;
    }
    ++decoded;
  }
  return decoded;
}

void Engine::prefill_done(const QueuedStep::Prefill& prefill, const TensorView& logits) {
  Task& task = *prefill.task;
  const int64_t count = prefill.chunk.count;
  if (prefill.wanted == Logits::kAll) {
    // Row i tells of the token after it; the prompt's last row tells of none in it.
    const int64_t scored = prefill.chunk.last ? count - 1 : count;
    const std::span<const int32_t> targets =
        std::span<const int32_t>(task.context).subspan(task.fed + 1, scored);
    std::vector<SampleResult> results(scored);
    backend_->score(logits.rows(0, scored), targets, task.request.sampling.logprobs, results);
    std::move(results.begin(), results.end(), std::back_inserter(task.result.prompt_logprobs));
  }
  task.fed += count;
  if (prefill.wanted == Logits::kNone) return;
  const TensorView last = logits.rows(logits.shape[0] - 1, 1);
  const bool junction = task.fed == task.snapshot_at;
  if (cache_.enabled() && !task.request.from && (junction || prefill.chunk.last)) {
    const std::span<const int32_t> tokens(task.context);
    if (!cache_.touch(tokens.first(task.fed))) {
      cache_.insert(take_snapshot(task.states[0], tokens.first(task.fed), last));
    }
  }
  if (prefill.chunk.last) sample_first(task, last);
}

// The prompt is complete: forks its state to all completions and draws the first token of each.
void Engine::sample_first(Task& task, const TensorView& logits) {
  if (task.request.max_tokens == 0) {
    backend_->synchronize();  // no draw will wait for the prompt
    task.result.first_token = Clock::now();
  }
  for (int32_t i = 0; i < task.request.n; ++i) {
    if (i > 0) states_.copy(task.states[0], task.states[i]);
    task.sequences.push_back(std::make_unique<Sequence>(*model_, task.request, task.context, i));
  }
  for (int32_t i = 0; i < task.request.n; ++i) {
    Sequence& sequence = *task.sequences[i];
    sequence.state = std::move(task.states[i]);
    if (task.request.max_tokens == 0) {
      sequence.end(FinishReason::kLength);
      if (task.request.keep_snapshot) {
        sequence.completion.snapshot = take_snapshot(sequence.state, task.context, logits);
      }
      continue;
    }
    const SampleRow row = sequence.sample_row();
    SampleResult result;
    backend_->sample(logits, {&row, 1}, {&result, 1});
    if (i == 0) task.result.first_token = Clock::now();
    accept(task, sequence, std::move(result));
  }
}

void Engine::accept(Task& task, Sequence& sequence, SampleResult result) {
  const int32_t token = result.token;
  const std::string text = sequence.accept(std::move(result));
  if (task.on_delta) task.on_delta({sequence.index(), token, text});
  if (!sequence.ended()) return;
  if (keeps_end(task)) {
    sequence.closing = true;  // one more step takes its last token in
  } else {
    sequence.state.reset();
  }
}

// Whether the state after the last token is wanted.
bool Engine::keeps_end(const Task& task) const {
  const Request& request = task.request;
  return request.keep_snapshot || (request.cache_turn && cache_.enabled() && !request.from);
}

// The state has taken in every token of an ended sequence.
void Engine::close(const Task& task, Sequence& sequence, const TensorView& logits) {
  std::vector<int32_t> tokens = task.context;
  tokens.insert(tokens.end(), sequence.completion.tokens.begin(), sequence.completion.tokens.end());
  std::shared_ptr<const Snapshot> snapshot = take_snapshot(sequence.state, tokens, logits);
  if (task.request.keep_snapshot) sequence.completion.snapshot = snapshot;
  if (cache_.enabled() && !task.request.from) cache_.insert(std::move(snapshot));
  sequence.closing = false;
  sequence.state.reset();
}

std::shared_ptr<const Snapshot> Engine::take_snapshot(const StateHandle& state,
                                                      std::span<const int32_t> tokens,
                                                      const TensorView& logits) {
  auto snapshot = std::make_shared<Snapshot>();
  snapshot->tokens.assign(tokens.begin(), tokens.end());
  snapshot->state = states_.export_state(state);
  snapshot->logits = backend_->copy_out(logits.f32(), model_->config.vocab_size);
  return snapshot;
}

}  // namespace gsa
