#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/conversation.h"
#include "engine/loaded_model.h"
#include "text/chat_template.h"

namespace gsa {

// What a new turn gives the model to read.
struct ChatPrompt {
  int64_t base = -1;            // the turn whose state it goes on from; -1: a fresh state
  std::vector<int32_t> tokens;  // that follow
  int64_t own = 0;              // the last of them, which are the new turn's
};

// The prompt of `user` after `turns`. With a chat template (null: a story teller) it is what the
// template writes for the whole conversation less what the state of a turn has already read; where
// the template or a new system text rewrites what was read, the base is the last turn before that.
// A story is its texts, one after the other. Throws gsa::Error where the template refuses the
// messages or there is nothing to read.
ChatPrompt chat_prompt(const LoadedModel& model, const ChatTemplate* chat_template,
                       const std::string& system, std::span<const std::shared_ptr<Turn>> turns,
                       const std::string& user);

}  // namespace gsa
