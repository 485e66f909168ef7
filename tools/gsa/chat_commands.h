#pragma once

#include <string>
#include <vector>

namespace gsa {

class ChatSession;

// Does what a line that begins with '/' says. Throws gsa::Error where there is no such command or
// it cannot be done.
void run_chat_command(const std::string& line, ChatSession& session);

// "/help", "/undo", ...
std::vector<std::string> chat_command_names();

}  // namespace gsa
