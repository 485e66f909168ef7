#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "engine/conversation.h"
#include "engine/request_settings.h"
#include "kernels/error.h"
#include "tools/gsa/chat_commands.h"
#include "tools/gsa/chat_input.h"
#include "tools/gsa/chat_screen.h"
#include "tools/gsa/chat_session.h"
#include "tools/gsa/chat_signals.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/line_editor.h"
#include "tools/gsa/options.h"
#include "tools/gsa/progress_bar.h"

namespace gsa {
namespace {

struct ChatFlags {
  RunFlags run;
  SamplingFlags sampling;
  std::string system, load;
  double undo_memory_mib = 256;
  std::vector<std::string> given;  // settings that stand on the command line
};

std::unique_ptr<InputSource> make_input(ChatSignals& signals, const ChatScreen& screen) {
  const bool typed = ::isatty(STDIN_FILENO) == 1;
  const char* terminal = std::getenv("TERM");
  const bool dumb = terminal == nullptr || *terminal == '\0' || std::strcmp(terminal, "dumb") == 0;
  if (!typed || !screen.terminal() || dumb) return std::make_unique<PlainInput>(signals, typed);
  return std::make_unique<LineEditor>(signals,
                                      LineEditor::Options{.colour = screen.colour(),
                                                          .history = history_path(),
                                                          .completions = chat_command_names()});
}

// What a flag says goes before what a loaded file says.
void apply_given(const ChatFlags& flags, const Request& request, Conversation& conversation) {
  const auto values = settings_of(request);
  for (const std::string& name : flags.given) conversation.set(name, values.at(name));
  if (!flags.system.empty()) conversation.set_system(flags.system);
}

void show_banner(const Engine& engine, const Conversation& conversation, ChatScreen& screen) {
  const LoadedModel& model = engine.model();
  if (screen.terminal()) {
    screen.note(fmt::format("{} ({}) on {}; {:.2f} MiB of state, however long the conversation",
                            model.identity.name, model.type, engine.backend().description(),
                            engine.state_bytes() / 0x1p20));
  }
  if (conversation.tells_stories()) {
    screen.note(
        fmt::format("This model has no chat template, so it is a story teller: it goes on "
                    "with what you type.{}",
                    screen.terminal() ? " An empty line lets it go on." : ""));
  }
  if (!screen.terminal()) return;
  screen.note("/help shows the commands. Ctrl-C stops an answer, Ctrl-D leaves.");
}

int run_chat(const ChatFlags& flags) {
  const Request request = make_request(flags.sampling);
  Engine engine(load_model(flags.run.model), {.device = flags.run.device,
                                              .threads = flags.run.threads,
                                              .states = 1,
                                              .state_type = state_type(flags.run.state_type),
                                              .on_load = loading_bar()});
  const auto keep_bytes = static_cast<int64_t>(flags.undo_memory_mib * 0x1p20);
  Conversation conversation(engine, request, {.keep_bytes = keep_bytes, .system = flags.system});
  if (!flags.load.empty()) {
    conversation.load(flags.load);
    apply_given(flags, request, conversation);
  }
  ChatSignals signals;
  ChatScreen screen;
  show_banner(engine, conversation, screen);
  const std::unique_ptr<InputSource> input = make_input(signals, screen);
  ChatSession session(conversation, screen, signals);
  if (!flags.load.empty()) session.note_place();
  return session.run(*input) ? 0 : 1;
}

}  // namespace

void add_chat(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("chat", "Talk with a model");
  const auto flags = std::make_shared<ChatFlags>();
  flags->sampling.max_tokens = 256;
  add_run_flags(*command, flags->run);
  command->add_option("--system", flags->system, "The system text; a story begins with it");
  command->add_option("--load", flags->load, "Go on from a conversation saved with /save");
  command
      ->add_option("--undo-memory", flags->undo_memory_mib,
                   "MiB for the states of earlier turns, to which /undo returns at once")
      ->check(CLI::Range(0.0, 0x1p30))
      ->capture_default_str();
  add_sampling_flags(*command, flags->sampling);
  command->callback([=, &action] {
    for (const RequestSetting& setting : request_settings()) {
      const CLI::Option* option = command->get_option_no_throw("--" + std::string(setting.name));
      if (option != nullptr && option->count() > 0) flags->given.emplace_back(setting.name);
    }
    action = [flags] { return run_chat(*flags); };
  });
}

}  // namespace gsa
