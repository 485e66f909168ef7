#include "text/chat_template.h"

#include <utility>

#include "text/jinja_interpreter.h"
#include "text/utf8.h"

namespace gsa {

ChatTemplate::ChatTemplate(std::string source) {
  constexpr size_t kMaxSource = size_t{1} << 20;
  if (source.size() > kMaxSource) {
    throw Error("chat template: {} bytes, expected at most {}", source.size(), kMaxSource);
  }
  program_ = std::make_shared<const jinja::Program>(jinja::parse(repair_utf8(source)));
}

std::vector<PromptPiece> ChatTemplate::render(std::span<const ChatMessage> messages,
                                              const Options& options) const {
  const jinja::Text text = jinja::Interpreter(*program_, messages, options).run();
  std::vector<PromptPiece> pieces;
  for (size_t begin = 0; begin < text.size();) {
    const bool content = text.content(begin);
    size_t end = begin + 1;
    while (end < text.size() && text.content(end) == content) ++end;
    pieces.push_back({text.bytes().substr(begin, end - begin), content});
    begin = end;
  }
  return pieces;
}

}  // namespace gsa
