#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace gsa {

struct ChatMessage {
  std::string role, content;
};

// A piece of a rendered prompt. Special tokens are recognised in pieces of the template alone,
// never in content.
struct PromptPiece {
  std::string text;
  bool content = false;
};

namespace jinja {
struct Program;
}

// A model's own chat template: the part of Jinja that templates of published models use, rendered
// as Hugging Face's apply_chat_template renders it (trim_blocks, lstrip_blocks, no trailing
// newline). Immutable, cheap to copy, safe to use from several threads.
//
// Every character remembers whether it comes from the template or from a conversation, through
// concatenation, slices, trim, replace and whatever else a template does to it. What was said is
// content, and so is a role that is none of the usual ones (system, user, assistant, tool, ...),
// since some templates build their special tokens from roles.
class ChatTemplate {
 public:
  struct Options {
    bool add_generation_prompt = true;
    // As the template writes them, "<s>"; empty: not defined.
    std::string bos_token = {}, eos_token = {};
    std::optional<std::time_t> now = std::nullopt;  // for strftime_now; none: the clock
  };

  // Throws gsa::Error naming line and construct where the source does not parse or uses what is not
  // supported.
  explicit ChatTemplate(std::string source);

  // The prompt in order; neighbours differ in `content`, none is empty. Invalid UTF-8 becomes
  // U+FFFD. Throws gsa::Error naming line and construct where the template refuses the conversation
  // (raise_exception, with its message), does something undefined, or goes beyond what time, memory
  // and depth an honest template needs.
  std::vector<PromptPiece> render(std::span<const ChatMessage> messages,
                                  const Options& options) const;

 private:
  std::shared_ptr<const jinja::Program> program_;
};

}  // namespace gsa
