#pragma once

#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/error.h"
#include "text/chat_template.h"
#include "text/utf8.h"

// As entries.h, for what stands above the checkpoints.
namespace gsa::fuzz {

// A template is refused or rendered; either ends soon. What it renders is valid UTF-8 in pieces
// that alternate, and no text is of another origin than it says: the conversation below has
// characters that no template has.
inline void chat_template(std::string_view bytes) {
  const auto require = [](bool condition) {
    if (!condition) std::abort();
  };
  const std::string said = "\xEE\x80\x80 \xEE\x80\x81\n";  // of the private use area
  if (bytes.find("\xEE\x80") != bytes.npos || bytes.find("\\ue0") != bytes.npos ||
      bytes.find("\\U") != bytes.npos || bytes.find("\\uE0") != bytes.npos) {
    return;
  }
  const std::vector<ChatMessage> messages = {
      {"system", said}, {"user", said}, {"assistant", said}, {said, ""}, {"user", said}};
  try {
    const ChatTemplate chat{std::string(bytes)};
    bool before = false, first = true;
    for (const PromptPiece& piece :
         chat.render(messages, {.bos_token = "<s>", .eos_token = "</s>"})) {
      require(!piece.text.empty());
      require(first || piece.content != before);
      require(repair_utf8(piece.text) == piece.text);
      require(piece.content || piece.text.find("\xEE\x80") == piece.text.npos);
      before = piece.content;
      first = false;
    }
  } catch (const Error& error) {
    const std::string_view text = error.what();
    require(text.starts_with("chat template"));
    require(text.find('\n') == std::string_view::npos);
    require(text.size() < 1000);
  }
}

}  // namespace gsa::fuzz
