#include "engine/conversation.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <utility>

#include "engine/chat_prompt.h"
#include "engine/request_settings.h"
#include "kernels/error.h"
#include "text/utf8.h"

namespace gsa {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kPoll{20};

double seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

int64_t bytes_of(const Snapshot& snapshot) {
  return static_cast<int64_t>(snapshot.tokens.size() * sizeof(int32_t) +
                              (snapshot.state.size() + snapshot.logits.size()) * sizeof(float));
}

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \n\t\r");
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(" \n\t\r") - first + 1);
}

}  // namespace

Conversation::Conversation(Engine& engine, Request settings, Options options)
    : engine_(engine),
      settings_(std::move(settings)),
      options_(std::move(options)),
      current_("main") {
  if (!engine.model().tokenizer) {
    throw Error("{} has no tokenizer, and a conversation is text", engine.model().identity.name);
  }
  if (const std::string& source = engine_.model().chat_template; !source.empty()) {
    template_.emplace(source);
  }
  settings_.prompt.clear();
  settings_.from = nullptr;
  settings_.n = 1;
  branches_[current_].system = options_.system;
}

void Conversation::set(std::string_view name, std::string_view value) {
  change_setting(engine_.model().config, name, value, settings_);
}

int64_t Conversation::kept_bytes() const {
  int64_t bytes = 0;
  for (const auto& kept : kept_) {
    const auto turn = kept.lock();
    if (turn && turn->state) bytes += bytes_of(*turn->state);
  }
  return bytes;
}

int64_t Conversation::unread_tokens() const {
  int64_t unread = 0;
  for (int64_t i = turns() - 1; i >= 0 && !turn(i).state; i = turn(i).base) {
    unread += static_cast<int64_t>(turn(i).tokens.size());
  }
  return unread;
}

bool Conversation::say(const std::string& text, const Listener& listener) {
  return answer(text, settings_.sampling.seed, listener);
}

bool Conversation::answer(const std::string& text, uint64_t seed, const Listener& listener) {
  const Clock::time_point begin = Clock::now();
  if (repair_utf8(text) != text) throw Error("the text is no UTF-8; nothing was said");
  Branch& branch = this->branch();
  ChatPrompt prompt = chat_prompt(engine_.model(), template_ ? &*template_ : nullptr, branch.system,
                                  branch.turns, text);
  Request request = resume(prompt.base);
  auto turn = std::make_shared<Turn>();
  turn->system = branch.system;
  turn->user = text;
  turn->seed = seed;
  turn->base = prompt.base;
  turn->position = prompt.base >= 0 ? branch.turns[prompt.base]->position : 0;
  turn->tokens = prompt.tokens;
  TurnCost cost{.prompt_tokens = prompt.own};
  cost.rewritten = prompt.base + 1 != turns();
  request.prompt.insert(request.prompt.end(), prompt.tokens.begin(), prompt.tokens.end());
  cost.reread_tokens = static_cast<int64_t>(request.prompt.size()) - prompt.own;
  request.sampling.seed = seed;
  if (listener.on_prompt) listener.on_prompt(cost);
  Result result = run(std::move(request), listener);
  Completion& completion = result.completions.at(0);
  if (!completion.snapshot) return false;

  cost.first_token_seconds = seconds(result.first_token - begin);
  cost.decode_seconds = seconds(result.finished - result.first_token);
  cost.output_tokens = static_cast<int64_t>(completion.tokens.size());
  turn->answer = tells_stories() ? completion.text : trimmed(completion.text);
  turn->finish_reason = completion.finish_reason;
  turn->drawn = cost.output_tokens;
  turn->tokens.insert(turn->tokens.end(), completion.tokens.begin(), completion.tokens.end());
  turn->position += static_cast<int64_t>(turn->tokens.size());
  turn->state = std::move(completion.snapshot);
  branch.turns.push_back(turn);
  cost_ = cost;
  keep(turn);
  return true;
}

// A request that goes on from the state of a turn: from the nearest one that is kept, with the
// tokens since then as its prompt.
Request Conversation::resume(int64_t base) const {
  const auto& turns = branch().turns;
  std::vector<const Turn*> missing;
  while (base >= 0 && !turns[base]->state) {
    missing.push_back(turns[base].get());
    base = turns[base]->base;
  }
  Request request = settings_;
  request.keep_snapshot = true;
  if (base >= 0) request.from = turns[base]->state;
  for (auto turn = missing.rbegin(); turn != missing.rend(); ++turn) {
    request.prompt.insert(request.prompt.end(), (*turn)->tokens.begin(), (*turn)->tokens.end());
  }
  return request;
}

Result Conversation::run(Request request, const Listener& listener) {
  std::promise<Result> promise;
  std::future<Result> future = promise.get_future();
  const auto id = engine_.submit(
      std::move(request), [&](Result&& result) { promise.set_value(std::move(result)); },
      [&](const Delta& delta) {
        if (listener.on_text) listener.on_text(delta.text);
      });
  if (!id) throw Error("the engine takes no more requests");
  while (future.wait_for(kPoll) != std::future_status::ready) {
    if (listener.stopped && listener.stopped()) engine_.cancel(*id);
  }
  Result result = future.get();
  if (!result.error.empty()) throw Error("{}", result.error);
  return result;
}

void Conversation::undo(int64_t count) {
  if (count < 1 || count > turns()) {
    throw Error("there are {} turns, so {} cannot be taken back", turns(), count);
  }
  branch().turns.resize(turns() - count);
}

bool Conversation::retry(std::optional<uint64_t> seed, const Listener& listener) {
  if (turns() == 0) throw Error("nothing has been said yet");
  const std::string text = last().user;
  return replace_last(text, seed.value_or(last().seed + 1), listener);
}

bool Conversation::edit(const std::string& text, const Listener& listener) {
  if (turns() == 0) throw Error("nothing has been said yet");
  return replace_last(text, settings_.sampling.seed, listener);
}

bool Conversation::replace_last(const std::string& text, uint64_t seed, const Listener& listener) {
  const std::shared_ptr<Turn> replaced = branch().turns.back();
  branch().turns.pop_back();
  try {
    if (answer(text, seed, listener)) return true;
  } catch (...) {
    branch().turns.push_back(replaced);
    throw;
  }
  branch().turns.push_back(replaced);
  return false;
}

void Conversation::set_system(const std::string& text) {
  if (repair_utf8(text) != text) throw Error("the system text is no UTF-8; nothing was changed");
  branch().system = text;
}

void Conversation::reset() { branch().turns.clear(); }

void Conversation::fork(const std::string& name) {
  if (name.empty()) throw Error("a branch needs a name");
  if (branches_.contains(name)) throw Error("there is a branch {} already", name);
  branches_.emplace(name, branch());
  current_ = name;
}

void Conversation::switch_to(const std::string& name) {
  if (!branches_.contains(name)) {
    throw Error("there is no branch {}; there are {}", name, fmt::join(branch_names(), ", "));
  }
  current_ = name;
}

std::vector<std::string> Conversation::branch_names() const {
  std::vector<std::string> names;
  for (const auto& [name, branch] : branches_) names.push_back(name);
  return names;
}

// Computes the state of the newest turn where it is not kept.
void Conversation::settle() {
  if (turns() == 0 || last().state) return;
  Request request = resume(turns() - 1);
  request.max_tokens = 0;
  Result result = run(std::move(request), {});
  const std::shared_ptr<Turn>& turn = branch().turns.back();
  turn->state = result.completions.at(0).snapshot;
  keep(turn);
}

// Counts a new state among those kept and gives up the oldest beyond the budget; the newest of
// every branch stay.
void Conversation::keep(const std::shared_ptr<Turn>& turn) {
  std::erase_if(kept_, [&](const std::weak_ptr<Turn>& kept) {
    const auto other = kept.lock();
    return !other || !other->state || other == turn;
  });
  kept_.push_back(turn);
  int64_t excess = kept_bytes() - options_.keep_bytes;
  for (auto it = kept_.begin(); it != kept_.end() && excess > 0;) {
    const auto oldest = it->lock();
    if (is_newest(*oldest)) {
      ++it;
      continue;
    }
    excess -= bytes_of(*oldest->state);
    oldest->state = nullptr;
    it = kept_.erase(it);
  }
}

bool Conversation::is_newest(const Turn& turn) const {
  return std::any_of(branches_.begin(), branches_.end(), [&](const auto& entry) {
    const auto& turns = entry.second.turns;
    return !turns.empty() && turns.back().get() == &turn;
  });
}

}  // namespace gsa
