#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "engine/conversation.h"
#include "tools/gsa/chat_input.h"
#include "tools/gsa/chat_screen.h"
#include "tools/gsa/chat_signals.h"

namespace gsa {

// "1 turn", "2 turns"
std::string counted(int64_t count, std::string_view what);

// A conversation between a user and a model: reads, shows, and does what is asked for.
class ChatSession {
 public:
  // All of them must outlive it.
  ChatSession(Conversation& conversation, ChatScreen& screen, ChatSignals& signals)
      : conversation_(conversation), screen_(screen), signals_(signals) {}

  // Until the user leaves. False where, without a terminal, something failed.
  bool run(InputSource& input);

  Conversation& conversation() { return conversation_; }
  ChatScreen& screen() { return screen_; }

  // Shows the answer that `make` makes; `make` gets the listener and returns what
  // Conversation::say returns.
  void answer(const std::function<bool(const Conversation::Listener&)>& make);

  // Says where the conversation stands, and what the next turn costs where that is more than its
  // own tokens.
  void note_place();

  void leave() { leaving_ = true; }

 private:
  std::string prompt() const;
  void handle(const ChatInput& input);
  void handle_interrupt(const ChatInput& input);
  void note_prompt(const TurnCost& cost);
  void note_end();

  Conversation& conversation_;
  ChatScreen& screen_;
  ChatSignals& signals_;
  bool leaving_ = false;
  bool asked_ = false;  // the last thing was Ctrl-C at an empty prompt
  bool failed_ = false;
};

}  // namespace gsa
