// Conversations of a story teller: turns, going back, branches, files.

#include "engine/conversation.h"

#include <algorithm>
#include <atomic>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint/safetensors.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/error_of.h"
#include "tests/support/tale.h"
#include "tests/support/temporary_folder.h"

namespace gsa::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ConversationTest : public BothWays {
 protected:
  static Request settings() {
    Request request;
    request.max_tokens = 12;
    request.sampling.temperature = 0.9;
    request.sampling.seed = 7;
    return request;
  }

  Conversation talk(Conversation::Options options = {}) {
    return Conversation(engine_, settings(), std::move(options));
  }

  // All that the state has read, by the turns.
  static std::vector<int32_t> state_tokens(const Conversation& talk) {
    return talk.last().state->tokens;
  }

  // What a request of its own, with all the text before as its prompt, answers.
  std::vector<int32_t> answer_from_scratch(const Conversation& talk) {
    const Turn& turn = talk.last();
    Request request = settings();
    request.prompt = state_tokens(talk);
    request.prompt.resize(request.prompt.size() - turn.drawn);
    request.sampling.seed = turn.seed;
    return engine_.submit(std::move(request)).get().completions[0].tokens;
  }

  static std::vector<int32_t> drawn(const Turn& turn) {
    return {turn.tokens.end() - turn.drawn, turn.tokens.end()};
  }

  Engine engine_{tale_model(), one_state(run_ahead())};
  const Conversation::Listener quiet_;
};

INSTANTIATE_TEST_SUITE_P(Steps, ConversationTest, testing::Bool(), way_name);

TEST_P(ConversationTest, ATurnCostsItsOwnTokensAndAnswersAsTheWholeTextWould) {
  Conversation chat = talk();
  EXPECT_TRUE(chat.tells_stories());
  int64_t read = 0;
  for (const char* text : {"Once upon a time", "The king said", "and then"}) {
    const int64_t before = engine_.stats().prompt_tokens;
    ASSERT_TRUE(chat.say(text, quiet_));
    EXPECT_EQ(drawn(chat.last()), answer_from_scratch(chat));
    const int64_t own = chat.last().tokens.size() - chat.last().drawn;
    EXPECT_EQ(chat.cost().prompt_tokens, own);
    EXPECT_EQ(chat.cost().reread_tokens, 0);
    // The engine read the turn's tokens, then those of the whole text for the comparison.
    EXPECT_EQ(engine_.stats().prompt_tokens - before, own + read + own);
    read += own + chat.last().drawn;
    EXPECT_EQ(chat.tokens(), read);
  }
  const std::vector<int32_t> tokens = state_tokens(chat);
  EXPECT_EQ(tokens.front(), 1) << "BOS begins the text";
  EXPECT_EQ(std::count(tokens.begin(), tokens.end(), 1), 1);
}

TEST_P(ConversationTest, ATurnCostsTheSameAfterThousandsOfTokens) {
  Conversation chat = talk();
  std::string chapter;
  for (int i = 0; i < 400; ++i) chapter += "and then she went on over the hills ";
  chat.say("Once upon a time", quiet_);
  chat.say("The king said", quiet_);
  const int64_t second = chat.cost().prompt_tokens;
  chat.say(chapter, quiet_);
  EXPECT_GT(chat.tokens(), 3000);
  const EngineStats before = engine_.stats();
  chat.say("The king said", quiet_);
  const EngineStats after = engine_.stats();
  EXPECT_EQ(chat.cost().prompt_tokens, second);
  EXPECT_EQ(after.prompt_tokens - before.prompt_tokens, second);
  EXPECT_EQ(after.steps - before.steps, 1 + 12) << "one step reads, the others write";
  EXPECT_EQ(chat.last().state->state.size() * sizeof(float), tale_model()->config.state_bytes());
  EXPECT_EQ(drawn(chat.last()), answer_from_scratch(chat));
}

TEST_P(ConversationTest, StreamsTheAnswerInPieces) {
  Conversation chat = talk();
  std::string shown;
  int pieces = 0;
  ASSERT_TRUE(chat.say("Once upon a time", {.on_text =
                                                [&](std::string_view text) {
                                                  shown += text;
                                                  ++pieces;
                                                },
                                            .stopped = nullptr}));
  EXPECT_EQ(shown, chat.last().answer);
  EXPECT_EQ(pieces, 12);
}

TEST_P(ConversationTest, AnEmptyTextGoesOnWithTheStory) {
  Conversation chat = talk();
  ASSERT_TRUE(chat.say("", quiet_)) << "BOS alone begins a story";
  chat.reset();
  ASSERT_TRUE(chat.say("Once upon a time", quiet_));
  ASSERT_TRUE(chat.say("", quiet_));
  EXPECT_EQ(chat.last().tokens.size(), 12u);
  EXPECT_EQ(drawn(chat.last()), answer_from_scratch(chat));
}

TEST_P(ConversationTest, UndoIsExact) {
  Conversation chat = talk();
  chat.say("Once upon a time", quiet_);
  const std::shared_ptr<const Snapshot> first = chat.last().state;
  chat.say("The king said", quiet_);
  const std::vector<int32_t> second = chat.last().tokens;
  chat.say("and so on", quiet_);
  chat.undo(2);
  EXPECT_EQ(chat.turns(), 1);
  EXPECT_EQ(chat.last().state, first);
  chat.say("The king said", quiet_);
  EXPECT_EQ(chat.last().tokens, second);
  EXPECT_EQ(chat.cost().reread_tokens, 0);
  EXPECT_THAT(error_of([&] { chat.undo(3); }), HasSubstr("there are 2 turns"));
  EXPECT_EQ(chat.turns(), 2);
}

TEST_P(ConversationTest, RetryDrawsAnewAndWithTheSameSeedTheSame) {
  Conversation chat = talk();
  EXPECT_THAT(error_of([&] { chat.retry({}, quiet_); }), HasSubstr("nothing has been said"));
  chat.say("Once upon a time", quiet_);
  chat.say("The king said", quiet_);
  const std::vector<int32_t> answer = drawn(chat.last());
  ASSERT_TRUE(chat.retry({}, quiet_));
  EXPECT_EQ(chat.turns(), 2);
  EXPECT_NE(drawn(chat.last()), answer);
  EXPECT_EQ(chat.last().seed, 8u);
  const std::vector<int32_t> other = drawn(chat.last());
  ASSERT_TRUE(chat.retry(7, quiet_));
  EXPECT_EQ(drawn(chat.last()), answer);
  ASSERT_TRUE(chat.retry(8, quiet_));
  EXPECT_EQ(drawn(chat.last()), other);
}

TEST_P(ConversationTest, EditSaysSomethingElseInPlaceOfTheLastText) {
  Conversation chat = talk();
  chat.say("Once upon a time", quiet_);
  chat.say("The king said", quiet_);
  ASSERT_TRUE(chat.edit("The queen said", quiet_));
  EXPECT_EQ(chat.turns(), 2);
  EXPECT_EQ(chat.last().user, "The queen said");
  EXPECT_EQ(drawn(chat.last()), answer_from_scratch(chat));
}

TEST_P(ConversationTest, AStoppedAnswerStaysAsFarAsItCame) {
  Conversation chat = talk();
  chat.set("max-tokens", "100000");
  chat.set("ignore-eos", "on");
  std::atomic<int> pieces = 0;
  ASSERT_TRUE(chat.say("Once upon a time", {.on_text = [&](std::string_view) { ++pieces; },
                                            .stopped = [&] { return pieces > 5; }}));
  EXPECT_EQ(chat.last().finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(chat.last().drawn, pieces);
  EXPECT_EQ(state_tokens(chat), chat.last().tokens) << "the state has read the answer to its end";
  chat.set("max-tokens", "12");
  chat.set("ignore-eos", "off");
  ASSERT_TRUE(chat.say("and then", quiet_));
  EXPECT_EQ(chat.cost().reread_tokens, 0);
  EXPECT_EQ(drawn(chat.last()), answer_from_scratch(chat));
}

TEST_P(ConversationTest, StoppedBeforeTheFirstTokenNothingIsSaid) {
  Conversation chat = talk();
  chat.say("Once upon a time", quiet_);
  std::string flood;
  for (int i = 0; i < 20000; ++i) flood += "and on ";
  const Conversation::Listener impatient{.on_text = nullptr, .stopped = [] { return true; }};
  EXPECT_FALSE(chat.say(flood, impatient));
  EXPECT_EQ(chat.turns(), 1);
  EXPECT_FALSE(chat.edit(flood, impatient));
  EXPECT_EQ(chat.turns(), 1);
  EXPECT_EQ(chat.last().user, "Once upon a time") << "a turn that is not replaced stays";
}

TEST_P(ConversationTest, RefusesWhatIsNoUtf8AndStaysAsItWas) {
  Conversation chat = talk();
  chat.say("Once upon a time", quiet_);
  EXPECT_THAT(error_of([&] { chat.say("caf\xE9", quiet_); }), HasSubstr("no UTF-8"));
  EXPECT_THAT(error_of([&] { chat.edit("caf\xE9", quiet_); }), HasSubstr("no UTF-8"));
  EXPECT_THAT(error_of([&] { chat.set_system("\xFF"); }), HasSubstr("no UTF-8"));
  EXPECT_EQ(chat.turns(), 1);
  EXPECT_EQ(chat.last().user, "Once upon a time");
}

TEST_P(ConversationTest, BranchesGoTheirOwnWays) {
  Conversation chat = talk();
  chat.say("Once upon a time", quiet_);
  chat.fork("other");
  EXPECT_EQ(chat.branch_name(), "other");
  chat.say("The queen said", quiet_);
  const std::vector<int32_t> queen = chat.last().tokens;
  chat.switch_to("main");
  EXPECT_EQ(chat.turns(), 1);
  chat.say("The king said", quiet_);
  EXPECT_EQ(drawn(chat.last()), answer_from_scratch(chat));
  chat.switch_to("other");
  EXPECT_EQ(chat.last().tokens, queen);
  chat.undo();
  chat.say("The queen said", quiet_);
  EXPECT_EQ(chat.last().tokens, queen);
  EXPECT_THAT(chat.branch_names(), ElementsAre("main", "other"));
  EXPECT_THAT(error_of([&] { chat.fork("main"); }), HasSubstr("there is a branch main already"));
  EXPECT_THAT(error_of([&] { chat.switch_to("x"); }), HasSubstr("no branch x; there are main, ot"));
}

TEST_P(ConversationTest, StatesBeyondTheBudgetAreComputedAnewWithTheSameResult) {
  // A budget of two states, besides the newest.
  const int64_t state = tale_model()->config.state_bytes() + tale_model()->config.vocab_size * 4;
  Conversation chat = talk({.keep_bytes = 2 * state + 2000, .system = ""});
  chat.say("Once upon a time", quiet_);
  chat.fork("kept");
  chat.switch_to("main");
  std::vector<std::vector<int32_t>> turns;
  for (int i = 0; i < 5; ++i) {
    chat.say("and then", quiet_);
    turns.push_back(chat.last().tokens);
  }
  EXPECT_LE(chat.kept_bytes(), chat.keep_bytes());
  EXPECT_TRUE(chat.turn(0).state) << "the newest of a branch stays";
  EXPECT_FALSE(chat.turn(1).state);
  EXPECT_FALSE(chat.turn(3).state);
  EXPECT_EQ(chat.unread_tokens(), 0);
  chat.undo(2);
  const int64_t unread = turns[0].size() + turns[1].size() + turns[2].size();
  EXPECT_EQ(chat.unread_tokens(), unread);
  chat.say("and then", quiet_);
  EXPECT_EQ(chat.last().tokens, turns[3]);
  EXPECT_EQ(chat.cost().reread_tokens, unread);
  EXPECT_EQ(chat.unread_tokens(), 0);
}

TEST_P(ConversationTest, ASystemTextOpensTheStoryWheneverItIsGiven) {
  Conversation before = talk({.system = "A tale of the sea."});
  before.say("Once upon a time", quiet_);
  before.say("The king said", quiet_);
  Conversation after = talk();
  after.say("Once upon a time", quiet_);
  after.set_system("A tale of the sea.");
  after.say("The king said", quiet_);
  EXPECT_TRUE(after.cost().rewritten);
  EXPECT_GT(after.cost().reread_tokens, 12);
  EXPECT_EQ(drawn(after.last()), answer_from_scratch(after));
  const std::string text = engine_.model().tokenizer->decode(state_tokens(after));
  EXPECT_THAT(text, testing::StartsWith("A tale of the sea."));
  EXPECT_THAT(text, HasSubstr(after.turn(0).answer + " The king said"));
  after.say("and then", quiet_);
  EXPECT_EQ(after.cost().reread_tokens, 0);
  after.undo();
  EXPECT_EQ(after.unread_tokens(), 0);
}

TEST_P(ConversationTest, ResetForgetsTheTurnsAndNotTheSystemText) {
  Conversation chat = talk({.system = "A tale of the sea."});
  chat.say("Once upon a time", quiet_);
  const std::vector<int32_t> first = chat.last().tokens;
  chat.reset();
  EXPECT_EQ(chat.turns(), 0);
  EXPECT_EQ(chat.tokens(), 0);
  chat.say("Once upon a time", quiet_);
  EXPECT_EQ(chat.last().tokens, first);
}

TEST_P(ConversationTest, GoesOnFromItsFileAsIfItHadNeverStopped) {
  const TemporaryFolder folder;
  Conversation chat = talk({.system = "A tale of the sea."});
  chat.set("stop", "[\"never said\", \"\\u00e9\"]");
  chat.set("logit_bias", "29+1.5 30-2");
  chat.say("Once upon a time, \"he\" said\n", quiet_);
  chat.say("The king said", quiet_);
  chat.retry(12345678901234567890u, quiet_);
  chat.save(folder / "talk");
  Conversation again = talk();
  again.load(folder / "talk");
  EXPECT_EQ(again.turns(), 2);
  EXPECT_EQ(again.turn(0).user, chat.turn(0).user);
  EXPECT_EQ(again.last().answer, chat.last().answer);
  EXPECT_EQ(again.last().seed, 12345678901234567890u);
  EXPECT_THAT(again.settings().stop, ElementsAre("never said", "\u00e9"));
  EXPECT_EQ(again.settings().sampling.logit_bias[1].bias, -2);
  chat.say("and then", quiet_);
  again.say("and then", quiet_);
  EXPECT_EQ(again.last().tokens, chat.last().tokens);
  EXPECT_EQ(state_tokens(again), state_tokens(chat));
  EXPECT_EQ(again.cost().reread_tokens, 0);
  // The state of an earlier turn is not in the file.
  again.undo(2);
  chat.undo(2);
  EXPECT_EQ(again.unread_tokens(), static_cast<int64_t>(again.turn(0).tokens.size()));
  again.say("and then", quiet_);
  chat.say("and then", quiet_);
  EXPECT_EQ(again.last().tokens, chat.last().tokens);
}

TEST_P(ConversationTest, SavesTheStateOfATurnThatIsNoLongerKept) {
  const TemporaryFolder folder;
  Conversation chat = talk({.keep_bytes = 0, .system = ""});
  chat.say("Once upon a time", quiet_);
  chat.say("The king said", quiet_);
  const std::vector<int32_t> second = chat.last().tokens;
  chat.undo();
  ASSERT_FALSE(chat.last().state);
  chat.save(folder / "talk");
  Conversation again = talk();
  again.load(folder / "talk");
  again.say("The king said", quiet_);
  EXPECT_EQ(again.last().tokens, second);
}

TEST_P(ConversationTest, RefusesOtherFilesByNameAndStaysAsItWas) {
  const TemporaryFolder folder;
  Conversation chat = talk();
  EXPECT_THAT(error_of([&] { chat.save(folder / "empty"); }), HasSubstr("nothing has been said"));
  chat.say("Once upon a time", quiet_);
  chat.save(folder / "talk");
  const std::string bytes = read_bytes(folder / "talk");
  write_bytes(folder / "letter", "Dear reader");
  EXPECT_THAT(error_of([&] { chat.save(folder / "letter"); }), HasSubstr("no conversation"));
  EXPECT_EQ(read_bytes(folder / "letter"), "Dear reader");
  chat.save(folder / "talk");

  EXPECT_THAT(error_of([&] { chat.load(folder / "absent"); }), HasSubstr("absent"));
  EXPECT_THAT(error_of([&] { chat.load(tale_path()); }), HasSubstr("not a snapshot"));
  save_snapshot(*chat.last().state, tale_model()->config, tale_model()->identity, folder / "bare");
  EXPECT_THAT(error_of([&] { chat.load(folder / "bare"); }), HasSubstr("without a conversation"));
  save_snapshot(*chat.last().state, tale_model()->config, {"other-7b", "0123456789abcdef"},
                folder / "other");
  EXPECT_THAT(error_of([&] { chat.load(folder / "other"); }),
              AllOf(HasSubstr("made by the model other-7b"), HasSubstr("tale-10m")));

  const auto damaged = [&](const std::string& from, const std::string& to) {
    std::string copy = bytes;
    const size_t at = copy.find(from);
    EXPECT_NE(at, copy.npos) << from;
    copy.replace(at, from.size(), to);
    write_bytes(folder / "damaged", copy);
    return error_of([&] { chat.load(folder / "damaged"); });
  };
  EXPECT_THAT(damaged("\\\"drawn\\\":12", "\\\"drawn\\\":99"), HasSubstr("drawn"));
  EXPECT_THAT(damaged("\\\"base\\\":-1", "\\\"base\\\": 0"), HasSubstr("base"));
  EXPECT_THAT(damaged("\\\"tokens\\\":[1,", "\\\"tokens\\\":[3,"), HasSubstr("not those of"));
  EXPECT_THAT(damaged("\\\"version\\\":1", "\\\"version\\\":2"), HasSubstr("newer"));
  EXPECT_THAT(damaged("\\\"temp\\\":\\\"0.9", "\\\"temp\\\":\\\"-.9"), HasSubstr("temperature"));
  EXPECT_EQ(chat.turns(), 1);
  EXPECT_EQ(chat.settings().sampling.temperature, 0.9);
}

TEST_P(ConversationTest, SettingsAreCheckedWhenTheyAreMade) {
  Conversation chat = talk();
  chat.set("temperature", "0.25");
  chat.set("top_k", "3");
  EXPECT_EQ(chat.settings().sampling.temperature, 0.25);
  EXPECT_EQ(chat.settings().sampling.top_k, 3);
  EXPECT_THAT(error_of([&] { chat.set("temp", "hot"); }), HasSubstr("temp: expected a number"));
  EXPECT_THAT(error_of([&] { chat.set("top-p", "7"); }), HasSubstr("top_p"));
  EXPECT_THAT(error_of([&] { chat.set("warmth", "1"); }), HasSubstr("there are temp, top-k"));
  EXPECT_THAT(error_of([&] { chat.set("stop", "[1]"); }), HasSubstr("list of strings"));
  EXPECT_THAT(error_of([&] { chat.set("logit-bias", "x"); }), HasSubstr("ID+BIAS"));
  EXPECT_EQ(chat.settings().sampling.temperature, 0.25);
}

}  // namespace
}  // namespace gsa::test
