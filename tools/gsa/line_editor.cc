#include "tools/gsa/line_editor.h"

#include <histedit.h>
#include <langinfo.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <clocale>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "kernels/error.h"
#include "text/utf8.h"

namespace gsa {
namespace {

constexpr int kHistoryLines = 1000;
constexpr size_t kHistoryBytes = 4096;  // longer texts are not remembered
constexpr size_t kShortPaste = 200;     // bytes of one line that are pasted as they are
constexpr size_t kUnmarkedPaste = 256;  // bytes at once that nobody types
constexpr int kPasteSilenceMs = 30;
constexpr const char* kPasteBegin = "\033[200~";
constexpr std::string_view kPasteEnd = "\033[201~";

// Of valid UTF-8.
std::wstring to_wide(std::string_view text) {
  std::wstring wide;
  for (size_t at = 0; at < text.size();) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
    const size_t length = byte(0) < 0x80 ? 1 : byte(0) < 0xE0 ? 2 : byte(0) < 0xF0 ? 3 : 4;
    uint32_t code = length == 1 ? byte(0) : byte(0) & (0x7F >> length);
    for (size_t i = 1; i < length; ++i) code = code << 6 | (byte(i) & 0x3F);
    wide += static_cast<wchar_t>(code);
    at += length;
  }
  return wide;
}

bool marks_pastes() {
  const char* terminal = std::getenv("TERM");
  return terminal != nullptr && std::strcmp(terminal, "linux") != 0;
}

// Terminals send either end of line, or both.
std::string with_newlines(const std::string& text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r' && i + 1 < text.size() && text[i + 1] == '\n') continue;
    out += text[i] == '\r' ? '\n' : text[i];
  }
  return out;
}

}  // namespace

std::string history_path() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::filesystem::path(value == nullptr ? "" : value);
  };
  std::filesystem::path state = variable("XDG_STATE_HOME");
  if (!state.is_absolute()) {
    const std::filesystem::path home = variable("HOME");
    if (home.empty()) return {};
    state = home / ".local" / "state";
  }
  return state / "gsa" / "chat_history";
}

struct LineEditor::Impl {
  struct Paste {
    std::string label;
    std::string text;
  };

  Impl(ChatSignals& signals, Options options);
  ~Impl();

  static Impl& of(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<Impl*>(self);
  }
  static int read_character(EditLine* editor, wchar_t* character);
  static unsigned char paste(EditLine* editor, int);
  static unsigned char complete(EditLine* editor, int);
  static char* prompt_of(EditLine* editor) { return of(editor).prompt.data(); }

  void announce();
  bool handle(int special);
  bool is_of_key(int byte);
  bool is_unmarked_paste() const;
  void load_history();
  void remember(const std::string& text);
  ChatInput::Kind read_line(std::string& line);
  std::string take_marked_paste();
  std::string take_waiting();
  void insert_paste(std::string text);
  std::string with_pastes(std::string line);

  ByteSource bytes;
  Options options;
  bool marked;             // the terminal says where a paste begins and ends
  bool announced = false;  // and has been asked to, for this line
  EditLine* editor = nullptr;
  History* history = nullptr;
  std::string prompt;
  size_t key_bytes = 0;  // of the sequence of a key that may still come
  std::string partial;   // bytes of a character that is not complete
  std::wstring ready;    // characters that libedit has not taken yet
  std::vector<Paste> pastes;
  ChatInput::Kind ended = ChatInput::kText;  // why there is no line
  bool typed_something = false;
  bool is_utf8 = true;
};

LineEditor::Impl::Impl(ChatSignals& signals, Options given)
    : bytes(signals), options(std::move(given)), marked(marks_pastes()) {
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
  editor = el_init("gsa", stdin, stdout, stderr);
  history = history_init();
  if (editor == nullptr || history == nullptr) throw Error("the terminal cannot be set up");
  HistEvent event;
  ::history(history, &event, H_SETSIZE, kHistoryLines);
  ::history(history, &event, H_SETUNIQUE, 1);
  load_history();
  el_set(editor, EL_CLIENTDATA, this);
  el_set(editor, EL_EDITOR, "emacs");
  el_set(editor, EL_SIGNAL, 0);
  el_set(editor, EL_HIST, ::history, history);
  el_set(editor, EL_PROMPT_ESC, prompt_of, '\1');
  el_set(editor, EL_GETCFN, read_character);
  el_set(editor, EL_ADDFN, "gsa-paste", "Insert a paste", paste);
  el_set(editor, EL_ADDFN, "gsa-complete", "Complete a command", complete);
  el_set(editor, EL_BIND, kPasteBegin, "gsa-paste", nullptr);
  el_set(editor, EL_BIND, "\t", "gsa-complete", nullptr);
  el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_set(editor, EL_BIND, "\033[3~", "ed-delete-next-char", nullptr);
  el_set(editor, EL_BIND, "\033[1;5C", "em-next-word", nullptr);
  el_set(editor, EL_BIND, "\033[1;5D", "ed-prev-word", nullptr);
  el_source(editor, nullptr);
}

LineEditor::Impl::~Impl() {
  if (history != nullptr) history_end(history);
  if (editor != nullptr) el_end(editor);
}

void LineEditor::Impl::load_history() {
  if (options.history.empty()) return;
  std::error_code error;
  const auto folder = std::filesystem::path(options.history).parent_path();
  if (std::filesystem::create_directories(folder, error)) {
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all, error);
  }
  HistEvent event;
  ::history(history, &event, H_LOAD, options.history.c_str());
}

void LineEditor::Impl::remember(const std::string& text) {
  if (text.find_first_not_of(" \n\t") == text.npos || text.size() > kHistoryBytes) return;
  HistEvent event;
  ::history(history, &event, H_ENTER, text.c_str());
  if (options.history.empty()) return;
  if (::history(history, &event, H_SAVE, options.history.c_str()) < 0) {
    spdlog::warn("{}: the history cannot be written: {}", options.history, std::strerror(errno));
    options.history.clear();
  }
}

// libedit's source of characters: 1 with a character, or -1 with `ended` telling why there is none.
int LineEditor::Impl::read_character(EditLine* editor, wchar_t* character) {
  Impl& self = of(editor);
  self.announce();
  while (self.ready.empty()) {
    const int byte = self.bytes.next();
    if (byte < 0) {
      if (!self.handle(byte)) return -1;
    } else if (!self.is_of_key(byte) && self.is_unmarked_paste()) {
      self.bytes.give_back(static_cast<char>(byte));
      self.insert_paste(self.take_waiting());
      el_set(editor, EL_REFRESH);
    } else {
      const std::string raw = self.partial + static_cast<char>(byte);
      self.partial = raw;
      const std::string text = take_utf8(self.partial, /*complete=*/false);
      self.is_utf8 &= text == raw.substr(0, raw.size() - self.partial.size());
      self.ready = to_wide(text);
    }
  }
  *character = self.ready.front();
  self.ready.erase(0, 1);
  return 1;
}

// Asks the terminal to mark pastes. Not before libedit has taken the terminal over: what is sent
// on seeing this is then read as keys.
void LineEditor::Impl::announce() {
  if (!marked || announced) return;
  announced = true;
  (void)!::write(STDOUT_FILENO, "\033[?2004h", 8);
}

// What came in place of a byte; false where it ends the line.
bool LineEditor::Impl::handle(int special) {
  ChatSignals& signals = bytes.signals();
  if (special == ByteSource::kEnd || signals.terminated()) return false;
  if (signals.take_resize()) el_resize(editor);
  if (signals.take_continue()) {
    el_set(editor, EL_PREP_TERM, 1);
    el_set(editor, EL_REFRESH);
  }
  if (!signals.take_interrupt()) return true;
  const LineInfo* line = el_line(editor);
  typed_something = line->lastchar != line->buffer;
  ended = ChatInput::kInterrupt;
  return false;
}

// Whether the byte may belong to the sequence of a key, such as the one that a paste begins with.
bool LineEditor::Impl::is_of_key(int byte) {
  if (byte == '\033') key_bytes = std::strlen(kPasteBegin);
  return key_bytes > 0 && key_bytes-- > 0;
}

// More has come at once than anybody types.
bool LineEditor::Impl::is_unmarked_paste() const {
  const std::string_view waiting = bytes.waiting();
  const size_t newline = waiting.find_first_of("\r\n");
  const bool lines = newline != waiting.npos && newline + 1 < waiting.size();
  return waiting.size() >= kUnmarkedPaste || (!marked && lines);
}

unsigned char LineEditor::Impl::paste(EditLine* editor, int) {
  Impl& self = of(editor);
  self.insert_paste(self.take_marked_paste());
  return CC_REFRESH;
}

unsigned char LineEditor::Impl::complete(EditLine* editor, int) {
  const Impl& self = of(editor);
  const LineInfo* line = el_line(editor);
  const std::string_view typed(line->buffer, line->cursor - line->buffer);
  const std::string* found = nullptr;
  for (const std::string& word : self.options.completions) {
    if (typed.empty() || !word.starts_with(typed)) continue;
    if (found != nullptr) return CC_REFRESH_BEEP;
    found = &word;
  }
  if (found == nullptr) return CC_REFRESH_BEEP;
  el_insertstr(editor, (found->substr(typed.size()) + ' ').c_str());
  return CC_REFRESH;
}

std::string LineEditor::Impl::take_marked_paste() {
  std::string text;
  while (!text.ends_with(kPasteEnd)) {
    const int byte = bytes.next();
    if (byte == ByteSource::kEnd || bytes.signals().terminated()) return text;
    if (byte >= 0) text += static_cast<char>(byte);
  }
  text.resize(text.size() - kPasteEnd.size());
  return text;
}

// All that has come until the terminal is silent. A newline at the end stays, to be read as the
// key that enters the line.
std::string LineEditor::Impl::take_waiting() {
  std::string text;
  for (int byte; (byte = bytes.next(kPasteSilenceMs)) >= 0;) text += static_cast<char>(byte);
  if (!text.empty() && (text.back() == '\n' || text.back() == '\r')) {
    text.pop_back();
    bytes.give_back('\n');
  }
  return text;
}

void LineEditor::Impl::insert_paste(std::string text) {
  text = with_newlines(text);
  const std::string repaired = repair_utf8(text);
  if (repaired != text) is_utf8 = false;
  const auto lines = std::count(repaired.begin(), repaired.end(), '\n') + 1;
  const bool control = std::any_of(repaired.begin(), repaired.end(),
                                   [](char c) { return static_cast<unsigned char>(c) < ' '; });
  if (!control && repaired.size() <= kShortPaste) {
    el_insertstr(editor, repaired.c_str());
    return;
  }
  pastes.push_back({fmt::format("[paste {}: {} {}, {} bytes]", pastes.size() + 1, lines,
                                lines == 1 ? "line" : "lines", repaired.size()),
                    repaired});
  el_insertstr(editor, pastes.back().label.c_str());
}

std::string LineEditor::Impl::with_pastes(std::string line) {
  size_t from = 0;
  for (const Paste& paste : pastes) {
    const size_t at = line.find(paste.label, from);
    if (at == line.npos) continue;
    line.replace(at, paste.label.size(), paste.text);
    from = at + paste.text.size();
  }
  return line;
}

ChatInput::Kind LineEditor::Impl::read_line(std::string& line) {
  ended = ChatInput::kEnd;  // what libedit means by no line, if nothing else was noted
  typed_something = false;
  int count = 0;
  announced = false;
  const char* text = el_gets(editor, &count);
  if (announced) (void)!::write(STDOUT_FILENO, "\033[?2004l", 8);
  if (text == nullptr || count <= 0) {
    std::fputs(ended == ChatInput::kInterrupt ? "^C\n" : "\n", stdout);
    std::fflush(stdout);
    return ended;
  }
  line = text;
  if (line.ends_with('\n')) line.pop_back();
  return ChatInput::kText;
}

LineEditor::LineEditor(ChatSignals& signals, Options options)
    : impl_(std::make_unique<Impl>(signals, std::move(options))) {}

LineEditor::~LineEditor() = default;

ChatInput LineEditor::read(const std::string& prompt) {
  Impl& self = *impl_;
  ChatInput input;
  self.pastes.clear();
  self.is_utf8 = true;
  std::string shown = prompt;
  for (;;) {
    // The colours end before the blank: libedit drops what has no character behind it.
    self.prompt = self.options.colour
                      ? "\1\033[1;32m\1" + shown.substr(0, shown.size() - 1) + "\1\033[0m\1 "
                      : shown;
    std::string line;
    input.kind = self.read_line(line);
    if (input.kind != ChatInput::kText) {
      input.was_empty = input.text.empty() && !self.typed_something;
      return input;
    }
    const bool goes_on = line.ends_with('\\');
    if (goes_on) line.back() = '\n';
    input.text += line;
    if (!goes_on) break;
    shown = ". ";
  }
  self.remember(self.with_pastes(input.text));
  input.text = self.with_pastes(std::move(input.text));
  input.is_utf8 = self.is_utf8;
  return input;
}

}  // namespace gsa
