#include "tools/gsa/chat_session.h"

#include <string_view>

#include "kernels/error.h"
#include "text/utf8.h"
#include "tools/gsa/chat_commands.h"

namespace gsa {
namespace {

// The beginning of a text on one line.
std::string glimpse(const std::string& text) {
  constexpr size_t kShown = 60;
  std::string line = text.substr(0, text.find('\n'));
  bool cut = line.size() < text.size();
  if (line.size() > kShown) {
    size_t end = kShown;
    while (end > 0 && (line[end] & 0xC0) == 0x80) --end;
    line.resize(end);
    cut = true;
  }
  return line + (cut ? "..." : "");
}

}  // namespace

std::string counted(int64_t count, std::string_view what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

bool ChatSession::run(InputSource& input) {
  while (!leaving_ && !signals_.terminated()) {
    const ChatInput entered = input.read(prompt());
    if (entered.kind == ChatInput::kEnd) break;
    if (entered.kind == ChatInput::kInterrupt) {
      handle_interrupt(entered);
      continue;
    }
    asked_ = false;
    try {
      handle(entered);
    } catch (const Error& error) {
      screen_.error(error.what());
      failed_ = true;
    }
  }
  return screen_.terminal() || !failed_;
}

std::string ChatSession::prompt() const {
  const bool branched = conversation_.branch_names().size() > 1;
  return branched ? conversation_.branch_name() + "> " : "> ";
}

void ChatSession::handle(const ChatInput& input) {
  if (!input.is_utf8 || repair_utf8(input.text) != input.text) {
    throw Error("what was entered is no UTF-8; nothing was said");
  }
  const std::string& text = input.text;
  if (text.starts_with('/') && !text.starts_with("//")) return run_chat_command(text, *this);
  const std::string said = text.starts_with("//") ? text.substr(1) : text;
  const bool goes_on = conversation_.tells_stories() && screen_.terminal();
  if (said.find_first_not_of(" \n\t") == said.npos) {
    if (!goes_on || conversation_.turns() == 0) return;
    return answer([&](const auto& listener) { return conversation_.say("", listener); });
  }
  answer([&](const auto& listener) { return conversation_.say(said, listener); });
}

void ChatSession::handle_interrupt(const ChatInput& input) {
  if (!input.was_empty) {
    asked_ = false;
    return;
  }
  if (asked_ || !screen_.terminal()) {
    leaving_ = true;
    return;
  }
  asked_ = true;
  screen_.note("Ctrl-C once more leaves (so does Ctrl-D).");
}

void ChatSession::answer(const std::function<bool(const Conversation::Listener&)>& make) {
  signals_.take_interrupt();
  const EchoOff quiet;
  const bool said = make({
      .on_prompt = [&](const TurnCost& cost) { note_prompt(cost); },
      .on_text = [&](std::string_view text) { screen_.stream(text); },
      .stopped = [&] { return signals_.interrupted() || signals_.terminated(); },
  });
  signals_.take_interrupt();
  if (said) {
    screen_.end_answer();
    note_end();
  } else {
    screen_.note("Stopped before the answer began; nothing was said.");
  }
}

void ChatSession::note_prompt(const TurnCost& cost) {
  constexpr int64_t kLong = 4096;
  if (cost.reread_tokens > 0) {
    screen_.note(
        fmt::format("[reading {} of earlier turns again: {}]", counted(cost.reread_tokens, "token"),
                    cost.rewritten ? "their text has changed" : "their state was no longer kept"));
  }
  if (cost.prompt_tokens > kLong) {
    screen_.note(fmt::format("[reading {} tokens; Ctrl-C stops]", cost.prompt_tokens));
  }
}

// Why the answer ended, where that is not plain.
void ChatSession::note_end() {
  const Turn& turn = conversation_.last();
  if (turn.finish_reason == FinishReason::kCancelled) {
    screen_.note("[stopped]");
  } else if (conversation_.tells_stories() && turn.finish_reason == FinishReason::kStop) {
    screen_.note("[the end: what comes next begins a text of its own]");
  } else if (!conversation_.tells_stories() && turn.finish_reason == FinishReason::kLength) {
    screen_.note("[cut here: /set max-tokens makes room for longer answers]");
  }
}

void ChatSession::note_place() {
  if (conversation_.turns() == 0) return screen_.note("[at the beginning]");
  screen_.note(
      fmt::format("[{}, {}; the last text was: {}]", counted(conversation_.turns(), "turn"),
                  counted(conversation_.tokens(), "token"), glimpse(conversation_.last().user)));
  if (const int64_t unread = conversation_.unread_tokens(); unread > 0) {
    screen_.note(fmt::format("[the state of this turn is no longer kept: {} will be read again]",
                             counted(unread, "token")));
  }
}

}  // namespace gsa
