#include "engine/chat_prompt.h"

#include <algorithm>
#include <optional>

#include "kernels/error.h"

namespace gsa {
namespace {

using Turns = std::span<const std::shared_ptr<Turn>>;

// A rendered prompt byte by byte, so that two can be compared wherever their pieces are cut.
struct Rendering {
  std::string text;
  std::string origin;  // of each byte: kContent or kTemplate

  static constexpr char kContent = 'c', kTemplate = 't';

  void append(std::string_view piece, char from) {
    text += piece;
    origin.append(piece.size(), from);
  }

  bool has(size_t at, std::string_view expected, char from) const {
    const std::string_view origins = std::string_view(origin).substr(at);
    return std::string_view(text).substr(at).starts_with(expected) &&
           origins.substr(0, expected.size()).find_first_not_of(from) == origins.npos;
  }

  size_t skip_blanks(size_t at) const {
    return std::min(text.find_first_not_of(" \n\t\r", at), text.size());
  }

  std::vector<PromptPiece> pieces() const {
    std::vector<PromptPiece> list;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(origin.find_first_not_of(origin[at], at), text.size());
      list.push_back({text.substr(at, end - at), origin[at] == kContent});
      at = end;
    }
    return list;
  }
};

// Of one model's conversations.
class TemplateWriter {
 public:
  TemplateWriter(const LoadedModel& model, const ChatTemplate& chat_template)
      : tokenizer_(*model.tokenizer), template_(chat_template), eos_(model.config.eos_token_ids) {
    options_.add_generation_prompt = true;
    if (model.config.bos_token_id >= 0) {
      options_.bos_token = tokenizer_.piece(static_cast<int32_t>(model.config.bos_token_id));
    }
    if (!eos_.empty()) options_.eos_token = tokenizer_.piece(static_cast<int32_t>(eos_.front()));
  }

  // What the model reads before it answers `user`.
  Rendering before_answer(const std::string& system, Turns turns, const std::string& user) const {
    std::vector<ChatMessage> messages;
    if (!system.empty()) messages.push_back({"system", system});
    for (const auto& turn : turns) {
      messages.push_back({"user", turn->user});
      messages.push_back({"assistant", turn->answer});
    }
    messages.push_back({"user", user});
    Rendering rendering;
    for (const PromptPiece& piece : template_.render(messages, options_)) {
      rendering.append(piece.text, piece.content ? Rendering::kContent : Rendering::kTemplate);
    }
    return rendering;
  }

  // How much of `whole` the state after the last of `turns` has read; nothing where it has read
  // something else. Blanks around the answer don't count: answers are kept without them, templates
  // add and trim them, and what the state has read is the answer as it was drawn.
  std::optional<size_t> read_of(const Rendering& whole, Turns turns) const {
    const Turn& last = *turns.back();
    const Rendering before = before_answer(last.system, turns.first(turns.size() - 1), last.user);
    if (!whole.text.starts_with(before.text) || !whole.origin.starts_with(before.origin)) return {};
    size_t at = before.text.size();
    if (const size_t answer = whole.skip_blanks(at); !last.answer.empty()) {
      if (!whole.has(answer, last.answer, Rendering::kContent)) return {};
      at = answer + last.answer.size();
    }
    if (!ended_by_itself(last)) return at;
    // A template that writes no end of the answer is taken at its word: the model wrote one.
    const std::string end = tokenizer_.piece(last.tokens.back());
    const size_t written = whole.skip_blanks(at);
    return whole.has(written, end, Rendering::kTemplate) ? written + end.size() : at;
  }

  // Ids of what follows the first `read` bytes.
  std::vector<int32_t> ids_after(const Rendering& whole, size_t read) const {
    if (read == 0 || options_.eos_token.empty()) return encode(rest_of(whole, read));
    // Behind a special token, so that it is encoded as the middle of a text.
    Rendering rest;
    rest.append(options_.eos_token, Rendering::kTemplate);
    rest.text.append(whole.text, read);
    rest.origin.append(whole.origin, read);
    std::vector<int32_t> ids = encode(rest);
    if (ids.empty() || ids.front() != eos_.front()) return encode(rest_of(whole, read));
    ids.erase(ids.begin());
    return ids;
  }

 private:
  static Rendering rest_of(const Rendering& whole, size_t read) {
    return {whole.text.substr(read), whole.origin.substr(read)};
  }

  std::vector<int32_t> encode(const Rendering& rendering) const {
    return tokenizer_.encode_prompt(rendering.pieces());
  }

  bool ended_by_itself(const Turn& turn) const {
    return turn.drawn > 0 && std::find(eos_.begin(), eos_.end(), turn.tokens.back()) != eos_.end();
  }

  const Tokenizer& tokenizer_;
  const ChatTemplate& template_;
  const std::vector<int64_t>& eos_;
  ChatTemplate::Options options_;
};

ChatPrompt chat_prompt_of_template(const LoadedModel& model, const ChatTemplate& chat_template,
                                   const std::string& system, Turns turns,
                                   const std::string& user) {
  const TemplateWriter writer(model, chat_template);
  const Rendering whole = writer.before_answer(system, turns, user);
  ChatPrompt prompt;
  for (size_t count = turns.size(); count > 0; --count) {
    const std::optional<size_t> read = writer.read_of(whole, turns.first(count));
    if (!read) continue;
    prompt.base = static_cast<int64_t>(count) - 1;
    prompt.tokens = writer.ids_after(whole, *read);
    break;
  }
  if (prompt.base < 0) prompt.tokens = writer.ids_after(whole, 0);
  prompt.own = static_cast<int64_t>(prompt.tokens.size());
  if (prompt.base + 1 < static_cast<int64_t>(turns.size())) {
    const size_t typed = model.tokenizer->encode_plain(user).size();
    prompt.own = static_cast<int64_t>(std::min(typed, prompt.tokens.size()));
  }
  return prompt;
}

// A text of its own (with BOS where the tokenizer puts one), or one that goes on.
std::vector<int32_t> story_tokens(const LoadedModel& model, const Turn* last,
                                  const std::string& text) {
  const std::vector<int64_t>& eos = model.config.eos_token_ids;
  const bool begins = last == nullptr || last->tokens.empty() ||
                      std::find(eos.begin(), eos.end(), last->tokens.back()) != eos.end();
  return begins ? model.tokenizer->encode(text) : model.tokenizer->encode_plain(text);
}

std::string opening(const std::string& system, const std::string& text) {
  if (system.empty() || text.empty()) return system + text;
  return system + '\n' + text;
}

ChatPrompt chat_prompt_of_story(const LoadedModel& model, const std::string& system, Turns turns,
                                const std::string& user) {
  ChatPrompt prompt;
  const Turn* last = turns.empty() ? nullptr : turns.back().get();
  if (last == nullptr || last->system == system) {
    prompt.base = static_cast<int64_t>(turns.size()) - 1;
    prompt.tokens = story_tokens(model, last, last == nullptr ? opening(system, user) : user);
    prompt.own = static_cast<int64_t>(prompt.tokens.size());
    return prompt;
  }
  // Another opening: the whole story anew.
  const Turn* before = nullptr;
  const auto append = [&](std::span<const int32_t> tokens) {
    prompt.tokens.insert(prompt.tokens.end(), tokens.begin(), tokens.end());
  };
  for (const auto& turn : turns) {
    append(
        story_tokens(model, before, before == nullptr ? opening(system, turn->user) : turn->user));
    append(std::span(turn->tokens).last(turn->drawn));
    before = turn.get();
  }
  const std::vector<int32_t> own = story_tokens(model, before, user);
  append(own);
  prompt.own = static_cast<int64_t>(own.size());
  return prompt;
}

}  // namespace

ChatPrompt chat_prompt(const LoadedModel& model, const ChatTemplate* chat_template,
                       const std::string& system, Turns turns, const std::string& user) {
  ChatPrompt prompt = chat_template != nullptr
                          ? chat_prompt_of_template(model, *chat_template, system, turns, user)
                          : chat_prompt_of_story(model, system, turns, user);
  if (prompt.tokens.empty() && turns.empty()) {
    throw Error("there is nothing to go on from: begin with some text");
  }
  return prompt;
}

}  // namespace gsa
