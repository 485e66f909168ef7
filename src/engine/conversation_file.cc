// Saving and loading conversations: a snapshot with the turns and the settings in its metadata.

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "engine/conversation.h"
#include "engine/request_settings.h"
#include "kernels/error.h"

namespace gsa {
namespace {

constexpr const char* kKey = "gsa.conversation";
constexpr const char* kVersionKey = "version";
constexpr int64_t kVersion = 1;
constexpr int64_t kMany = int64_t{1} << 53;

std::string replaced_dump(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

nlohmann::json turn_json(const Turn& turn) {
  return {{"system", turn.system},
          {"user", turn.user},
          {"answer", turn.answer},
          {"finish_reason", finish_reason_name(turn.finish_reason)},
          {"seed", std::to_string(turn.seed)},
          {"tokens", turn.tokens},
          {"drawn", turn.drawn},
          {"base", turn.base}};
}

FinishReason read_finish_reason(const JsonObject& json) {
  for (FinishReason reason : {FinishReason::kStop, FinishReason::kLength, FinishReason::kCancelled,
                              FinishReason::kDeadline}) {
    if (json.string("finish_reason") == finish_reason_name(reason)) return reason;
  }
  json.refuse("finish_reason", "stop, length, cancelled or deadline");
}

uint64_t read_seed(const JsonObject& json) {
  const std::string& text = json.string("seed");
  const bool digits =
      !text.empty() && text.size() <= 20 && text.find_first_not_of("0123456789") == text.npos;
  if (!digits) json.refuse("seed", "a whole number as a string");
  errno = 0;
  const uint64_t seed = std::strtoull(text.c_str(), nullptr, 10);
  if (errno != 0) json.refuse("seed", "a number of 64 bits");
  return seed;
}

std::shared_ptr<Turn> read_turn(const nlohmann::json& value, const std::string& name,
                                const GsaConfig& config,
                                const std::vector<std::shared_ptr<Turn>>& earlier) {
  const JsonObject json(value, name);
  auto turn = std::make_shared<Turn>();
  turn->system = json.string("system");
  turn->user = json.string("user");
  turn->answer = json.string("answer");
  turn->finish_reason = read_finish_reason(json);
  turn->seed = read_seed(json);
  if (!json.at("tokens").is_array()) json.refuse("tokens", "a list of token ids");
  for (int64_t id : json.integers("tokens", 0, config.vocab_size - 1)) {
    turn->tokens.push_back(static_cast<int32_t>(id));
  }
  turn->drawn = json.integer("drawn", 0, static_cast<int64_t>(turn->tokens.size()));
  turn->base = json.integer("base", -1, static_cast<int64_t>(earlier.size()) - 1);
  turn->position = static_cast<int64_t>(turn->tokens.size());
  if (turn->base >= 0) turn->position += earlier[turn->base]->position;
  return turn;
}

// The tokens that the state after the last turn has taken in, by what the turns say.
std::vector<int32_t> tokens_of(const std::vector<std::shared_ptr<Turn>>& turns) {
  std::vector<int32_t> tokens(turns.back()->position);
  auto end = tokens.end();
  for (int64_t i = static_cast<int64_t>(turns.size()) - 1; i >= 0; i = turns[i]->base) {
    end = std::copy_backward(turns[i]->tokens.begin(), turns[i]->tokens.end(), end);
  }
  return tokens;
}

// A slip of the pen must not cost a file that is no conversation.
void refuse_to_replace(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return;
  bool conversation = false;
  try {
    conversation = SafetensorsFile::open(path).metadata().contains(kKey);
  } catch (const Error&) {
    conversation = false;  // no safetensors file at all
  }
  if (!conversation) throw Error("{}: not written: a file that is no conversation", path.string());
}

}  // namespace

void Conversation::save(const std::filesystem::path& path) {
  if (turns() == 0) throw Error("{}: not written: nothing has been said yet", path.string());
  refuse_to_replace(path);
  settle();
  nlohmann::json json = {{kVersionKey, kVersion},
                         {"system", system()},
                         {"settings", settings_of(settings_)},
                         {"turns", nlohmann::json::array()}};
  for (const auto& turn : branch().turns) json["turns"].push_back(turn_json(*turn));
  const LoadedModel& model = engine_.model();
  save_snapshot(*last().state, model.config, model.identity, path, {{kKey, replaced_dump(json)}});
}

void Conversation::load(const std::filesystem::path& path) {
  const LoadedModel& model = engine_.model();
  auto state = std::make_shared<const Snapshot>(load_snapshot(path, model.config, model.identity));
  const SafetensorsFile file = SafetensorsFile::open(path);
  const auto saved = file.metadata().find(kKey);
  if (saved == file.metadata().end()) {
    throw Error(
        "{}: a snapshot without a conversation; `gsa generate --load-state` goes on from it",
        file.name());
  }
  const std::string name = fmt::format("{}: {}", file.name(), kKey);
  const nlohmann::json value = parse_json(saved->second, name);
  const JsonObject json(value, name);
  if (const int64_t version = json.integer(kVersionKey, 1, kMany); version != kVersion) {
    throw Error("{}: version {} is newer than this program", name, version);
  }
  Branch loaded{.system = json.string("system"), .turns = {}};
  if (!json.at("turns").is_array() || json.at("turns").empty()) {
    json.refuse("turns", "a list with a turn in it");
  }
  for (const nlohmann::json& turn : json.at("turns")) {
    loaded.turns.push_back(read_turn(turn,
                                     fmt::format("{}: turn {}", name, loaded.turns.size() + 1),
                                     model.config, loaded.turns));
  }
  if (tokens_of(loaded.turns) != state->tokens) {
    throw Error("{}: the turns are not those of the state", name);
  }
  loaded.turns.back()->state = std::move(state);

  Request settings = settings_;
  const JsonObject names(json.at("settings"), name + ": settings");
  for (const auto& item : json.at("settings").items()) {
    change_setting(model.config, item.key(), names.string(item.key()), settings);
  }
  settings_ = std::move(settings);
  branch() = std::move(loaded);
  keep(branch().turns.back());
}

}  // namespace gsa
