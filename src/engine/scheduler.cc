#include "engine/scheduler.h"

#include <algorithm>
#include <cassert>

namespace gsa {

bool Scheduler::submit(RequestId id, int32_t priority, int64_t states) {
  assert(states >= 1 && !keys_.contains(id));
  if (waiting() >= options_.queue_limit) return false;
  const Key key{-int64_t{priority}, arrivals_++};
  queue_.emplace(key, Waiting{id, states});
  keys_.emplace(id, key);
  return true;
}

std::vector<RequestId> Scheduler::admit(int64_t free_states) {
  std::vector<RequestId> admitted;
  while (!queue_.empty() && queue_.begin()->second.states <= free_states) {
    const auto [key, head] = *queue_.begin();
    free_states -= head.states;
    running_.emplace(key, Running{.id = head.id, .states = head.states});
    queue_.erase(queue_.begin());
    admitted.push_back(head.id);
  }
  return admitted;
}

void Scheduler::start(RequestId id, int64_t prompt_tokens, int64_t cut) {
  Running& request = running_.at(keys_.at(id));
  request.prompt_tokens = prompt_tokens;
  request.cut = cut;
}

Scheduler::Plan Scheduler::plan() {
  Plan plan;
  int64_t decoding = 0;
  for (const auto& [key, request] : running_) {
    if (request.prompt_tokens > 0) continue;
    plan.decode.push_back(request.id);
    decoding += request.states;
  }
  int64_t budget = std::max(options_.step_tokens - decoding, options_.min_prefill);
  for (auto& [key, request] : running_) {
    if (request.prompt_tokens == 0 || budget == 0) continue;
    int64_t count = std::min(request.prompt_tokens, budget);
    if (request.cut > 0) {
      count = std::min(count, request.cut);
      request.cut -= count;
    }
    request.prompt_tokens -= count;
    budget -= count;
    plan.prefill.push_back({request.id, count, request.prompt_tokens == 0});
  }
  return plan;
}

bool Scheduler::only_decodes(int64_t free_states) const {
  if (!queue_.empty() && queue_.begin()->second.states <= free_states) return false;
  return std::all_of(running_.begin(), running_.end(),
                     [](const auto& running) { return running.second.prompt_tokens == 0; });
}

void Scheduler::remove(RequestId id) {
  const auto it = keys_.find(id);
  if (it == keys_.end()) return;
  queue_.erase(it->second);
  running_.erase(it->second);
  keys_.erase(it);
}

}  // namespace gsa
