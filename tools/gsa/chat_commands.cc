#include "tools/gsa/chat_commands.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string_view>

#include "engine/request_settings.h"
#include "kernels/error.h"
#include "tools/gsa/chat_session.h"

namespace gsa {
namespace {

struct Command {
  std::string_view name;       // without the slash
  std::string_view arguments;  // as the help shows them
  std::string_view summary;    // one line
  std::string_view details;    // what more there is to know
  void (*run)(ChatSession& session, const std::string& argument);
};

std::span<const Command> commands();

const Command& find_command(std::string_view name) {
  for (const Command& command : commands()) {
    if (command.name == name) return command;
  }
  throw Error("/{}: no such command; /help lists them, and a text that begins with / is written //",
              name);
}

template <typename T>
std::optional<T> optional_number(std::string_view command, const std::string& text) {
  if (text.empty()) return std::nullopt;
  T value{};
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || rest != text.data() + text.size()) {
    throw Error("/{} {}: expected a whole number", command, text);
  }
  return value;
}

std::filesystem::path file_of(std::string_view command, const std::string& argument) {
  if (argument.empty()) throw Error("/{}: expected the name of a file", command);
  const char* home = std::getenv("HOME");
  if (argument.starts_with("~/") && home != nullptr) return home + argument.substr(1);
  return argument;
}

void help(ChatSession& session, const std::string& argument) {
  const int width = session.screen().width();
  if (!argument.empty()) {
    const Command& command = find_command(argument.substr(argument.starts_with('/')));
    session.screen().print(fmt::format("/{}{}{}\n", command.name,
                                       command.arguments.empty() ? "" : " ", command.arguments));
    return session.screen().print(
        wrap(fmt::format("{}. {}", command.summary, command.details), width) + '\n');
  }
  constexpr int kColumn = 24;
  for (const Command& command : commands()) {
    const std::string left = fmt::format("/{} {}", command.name, command.arguments);
    session.screen().print(
        wrap(fmt::format("{:<{}}{}", left, kColumn, command.summary), width, kColumn) + '\n');
  }
  session.screen().print(
      wrap("A line that ends with \\ goes on in the next. A text that begins with "
           "/ is written with //. /help COMMAND tells more.",
           width) +
      '\n');
}

void undo(ChatSession& session, const std::string& argument) {
  session.conversation().undo(optional_number<int64_t>("undo", argument).value_or(1));
  session.note_place();
}

void retry(ChatSession& session, const std::string& argument) {
  const auto seed = optional_number<uint64_t>("retry", argument);
  session.answer(
      [&](const auto& listener) { return session.conversation().retry(seed, listener); });
}

void edit(ChatSession& session, const std::string& argument) {
  if (argument.empty()) throw Error("/edit: expected the text to say in place of your last");
  session.answer(
      [&](const auto& listener) { return session.conversation().edit(argument, listener); });
}

void save(ChatSession& session, const std::string& argument) {
  const std::filesystem::path path = file_of("save", argument);
  session.conversation().save(path);
  session.screen().note(fmt::format("[{}: {}, {} bytes]", path.string(),
                                    counted(session.conversation().turns(), "turn"),
                                    std::filesystem::file_size(path)));
}

void load(ChatSession& session, const std::string& argument) {
  session.conversation().load(file_of("load", argument));
  session.note_place();
}

void note_branches(ChatSession& session) {
  const Conversation& talk = session.conversation();
  session.screen().note(fmt::format("[branches: {}; this is {}]",
                                    fmt::join(talk.branch_names(), ", "), talk.branch_name()));
}

void fork(ChatSession& session, const std::string& argument) {
  session.conversation().fork(argument);
  note_branches(session);
}

void switch_branch(ChatSession& session, const std::string& argument) {
  if (argument.empty()) return note_branches(session);
  session.conversation().switch_to(argument);
  note_branches(session);
  session.note_place();
}

void system_text(ChatSession& session, const std::string& argument) {
  Conversation& talk = session.conversation();
  if (!argument.empty()) talk.set_system(argument == "off" ? "" : argument);
  session.screen().note(talk.system().empty() ? "[no system text]"
                                              : fmt::format("[system: {}]", talk.system()));
}

void set(ChatSession& session, const std::string& argument) {
  Conversation& talk = session.conversation();
  const size_t end = std::min(argument.find(' '), argument.size());
  const std::string name = argument.substr(0, end);
  const size_t begin = argument.find_first_not_of(' ', end);
  if (begin != argument.npos) {
    std::string value = argument.substr(begin);
    if (name != "stop") value.erase(value.find_last_not_of(' ') + 1);
    talk.set(name, value);
  } else if (!name.empty()) {
    find_setting(name);  // for its error
  }
  const int width = session.screen().width();
  for (const RequestSetting& setting : request_settings()) {
    if (!name.empty() && &setting != &find_setting(name)) continue;
    const std::string line =
        fmt::format("{:<20}{:<10} {}", setting.name, setting.get(talk.settings()), setting.help);
    session.screen().print(wrap(line, width, 31) + '\n');
  }
}

std::string mebibytes(int64_t bytes) { return fmt::format("{:.2f} MiB", bytes / 0x1p20); }

// Of the whole process, resident; 0 where the system does not tell.
int64_t process_bytes() {
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return file ? resident * ::sysconf(_SC_PAGESIZE) : 0;
}

void stats(ChatSession& session, const std::string&) {
  const Conversation& talk = session.conversation();
  const TurnCost& cost = talk.cost();
  const auto line = [&](const char* name, const std::string& value) {
    session.screen().print(fmt::format("{:<14}{}\n", name, value));
  };
  line("turns", fmt::format("{} on branch {}", talk.turns(), talk.branch_name()));
  line("tokens", fmt::format("{} in the state", talk.tokens()));
  line("state", mebibytes(talk.state_bytes()) + ", at any length");
  line("kept states",
       fmt::format("{} of at most {}", mebibytes(talk.kept_bytes()), mebibytes(talk.keep_bytes())));
  if (const int64_t bytes = process_bytes(); bytes > 0) line("process", mebibytes(bytes));
  if (cost.output_tokens == 0) return;
  line("last answer", fmt::format("{} tokens read, {} written",
                                  cost.prompt_tokens + cost.reread_tokens, cost.output_tokens));
  line("first token", fmt::format("after {:.1f} ms", cost.first_token_seconds * 1e3));
  if (cost.output_tokens > 1) {
    line("speed", fmt::format("{:.1f} tokens/s", (cost.output_tokens - 1) / cost.decode_seconds));
  }
}

void reset(ChatSession& session, const std::string&) {
  session.conversation().reset();
  session.note_place();
}

void leave(ChatSession& session, const std::string&) { session.leave(); }

constexpr Command kCommands[] = {
    {"help", "[COMMAND]", "Show the commands, or what one of them does", "", help},
    {"undo", "[N]", "Take back the last turn, or the last N",
     "The state from before is restored as it was. States are kept within the budget of "
     "--undo-memory; beyond it the tokens are read again, with the same result, and it says so.",
     undo},
    {"retry", "[SEED]", "Have the last answer made anew",
     "It is drawn with the seed after its own, or with SEED; the same seed gives the same answer.",
     retry},
    {"edit", "TEXT", "Say TEXT in place of your last text", "", edit},
    {"save", "FILE", "Save this branch",
     "One file holds the state, the turns and the settings. `gsa inspect FILE` shows it, `gsa chat "
     "--load FILE` and /load go on from it.",
     save},
    {"load", "FILE", "Go on from a saved conversation, in place of this branch",
     "Its settings are taken over too. A file of another model is refused.", load},
    {"fork", "NAME", "Copy the conversation to a branch NAME and go there",
     "Both go on from here each in its own way; /switch goes back.", fork},
    {"switch", "[NAME]", "Go to branch NAME, or list the branches",
     "The first branch is called main.", switch_branch},
    {"system", "[TEXT]", "Show or change the system text; off: none",
     "A story teller begins its story with it. Once something has been said, the next turn reads "
     "the whole conversation again, as if the text had always been this.",
     system_text},
    {"set", "[NAME [VALUE]]", "Show or change the settings",
     "/set temperature 0.7. The names are those of the flags (temp) or of OpenAI's API "
     "(temperature). /set stop [] takes the stop strings away.",
     set},
    {"stats", "", "Show what the conversation and its last turn cost",
     "The state has one size, however long the conversation is.", stats},
    {"reset", "", "Forget the turns of this branch", "System text and settings stay.", reset},
    {"exit", "", "Leave; so do Ctrl-D, and Ctrl-C twice", "", leave},
};

std::span<const Command> commands() { return kCommands; }

}  // namespace

void run_chat_command(const std::string& line, ChatSession& session) {
  const size_t end = std::min(line.find_first_of(" \n\t"), line.size());
  const size_t begin = std::min(line.find_first_not_of(" \n\t", end), line.size());
  const Command& command = find_command(std::string_view(line).substr(1, end - 1));
  std::string argument = line.substr(begin);
  if (command.name != "set") argument.erase(argument.find_last_not_of(" \n\t") + 1);
  command.run(session, argument);
}

std::vector<std::string> chat_command_names() {
  std::vector<std::string> names;
  for (const Command& command : commands()) names.push_back('/' + std::string(command.name));
  return names;
}

}  // namespace gsa
