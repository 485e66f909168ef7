#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "engine/request.h"
#include "text/chat_template.h"

namespace gsa {

// What was said and what was answered.
struct Turn {
  std::string system;  // the system text it was made under
  std::string user;
  std::string answer;
  FinishReason finish_reason = FinishReason::kStop;
  uint64_t seed = 0;  // of the conversation when the answer was drawn

  // What the state took in: the prompt, then the answer as it was drawn, `drawn` tokens of it.
  std::vector<int32_t> tokens;
  int64_t drawn = 0;
  int64_t base = -1;                      // the turn whose state it went on from; -1: a fresh one
  int64_t position = 0;                   // tokens that the state has taken in after it
  std::shared_ptr<const Snapshot> state;  // after it; null where it is not kept
};

// What the latest turn cost.
struct TurnCost {
  int64_t prompt_tokens = 0;       // of the turn itself
  int64_t reread_tokens = 0;       // of earlier turns, whose state was not kept or no longer true
  bool rewritten = false;          // the text before this turn is not what the state had read
  double first_token_seconds = 0;  // from say() to the first token
  double decode_seconds = 0;       // from the first token to the last
  int64_t output_tokens = 0;
};

// A talk with a model, in one state: a turn costs its own tokens, however long the talk is.
//
// A model with a chat template answers; one without is a story teller, which goes on with what it
// is told. The state after a turn is kept as a snapshot, so that going back to it is exact and
// immediate. Kept snapshots share a budget, the oldest are given up first, and what is not kept is
// computed anew from the tokens, with the same result. Used by one thread at a time.
class Conversation {
 public:
  struct Options {
    int64_t keep_bytes = int64_t{256} << 20;  // for the states of earlier turns
    std::string system;
  };

  // While an answer is made. All are called before the call they were given to returns.
  struct Listener {
    std::function<void(const TurnCost& cost)> on_prompt = nullptr;  // what will be read
    // On the engine's thread; must not throw.
    std::function<void(std::string_view text)> on_text = nullptr;
    // Asked 50 times a second; true: the answer ends.
    std::function<bool()> stopped = nullptr;
  };

  // `settings` shapes the answers; its prompt and snapshots are ignored. The engine must outlive
  // the conversation. Throws gsa::Error where the model has no tokenizer or its chat template
  // cannot be read.
  Conversation(Engine& engine, Request settings, Options options);

  // No chat template: what is said is continued.
  bool tells_stories() const { return !template_; }

  const Request& settings() const { return settings_; }
  // Throws gsa::Error as change_setting does.
  void set(std::string_view name, std::string_view value);

  int64_t turns() const { return static_cast<int64_t>(branch().turns.size()); }
  const Turn& turn(int64_t index) const { return *branch().turns.at(index); }
  const Turn& last() const { return *branch().turns.back(); }
  int64_t tokens() const { return turns() == 0 ? 0 : last().position; }
  const std::string& system() const { return branch().system; }
  const TurnCost& cost() const { return cost_; }
  int64_t state_bytes() const { return engine_.state_bytes(); }
  int64_t kept_bytes() const;
  int64_t keep_bytes() const { return options_.keep_bytes; }

  // Tokens of earlier turns that must be read again before the next one: 0 where their state is
  // kept.
  int64_t unread_tokens() const;

  // Makes the answer to `text`. A story goes on where it stands when the text is empty. Stopped
  // before its first token, nothing is said and false is returned. Throws gsa::Error for text that
  // is no UTF-8, and where the template refuses; the conversation is then as before.
  bool say(const std::string& text, const Listener& listener);

  // Takes the last `count` turns back. Throws where there are fewer.
  void undo(int64_t count = 1);

  // Says the last turn's text again, with this seed or else the next after its own. Where it
  // throws or returns false, the turn is as before.
  bool retry(std::optional<uint64_t> seed, const Listener& listener);

  // Says this in place of the last turn's text.
  bool edit(const std::string& text, const Listener& listener);

  // The system text (a story: its opening), from the next turn on as if it had always been this.
  void set_system(const std::string& text);

  // Forgets the turns of this branch.
  void reset();

  // Branches: fork copies the current one under a new name and goes there.
  void fork(const std::string& name);
  void switch_to(const std::string& name);
  const std::string& branch_name() const { return current_; }
  std::vector<std::string> branch_names() const;

  // One file of the current branch: state, turns and settings (docs/checkpoint-format.md). Throws
  // where there is nothing to save, the file cannot be written, or another kind of file is there.
  void save(const std::filesystem::path& path);

  // Replaces the current branch and the settings. Throws where the file is no conversation or was
  // made by another model, naming both; all is then as before.
  void load(const std::filesystem::path& path);

 private:
  struct Branch {
    std::string system;
    std::vector<std::shared_ptr<Turn>> turns;
  };

  Branch& branch() { return branches_.at(current_); }
  const Branch& branch() const { return branches_.at(current_); }
  bool answer(const std::string& text, uint64_t seed, const Listener& listener);
  bool replace_last(const std::string& text, uint64_t seed, const Listener& listener);
  Request resume(int64_t base) const;
  Result run(Request request, const Listener& listener);
  void settle();
  void keep(const std::shared_ptr<Turn>& turn);
  bool is_newest(const Turn& turn) const;

  Engine& engine_;
  std::optional<ChatTemplate> template_;
  Request settings_;
  Options options_;
  std::string current_;
  std::map<std::string, Branch> branches_;
  std::deque<std::weak_ptr<Turn>> kept_;  // turns with a state, in the order they were made
  TurnCost cost_;
};

}  // namespace gsa
