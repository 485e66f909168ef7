#include "engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>

namespace gsa {

bool operator==(const Scheduler::Chunk& a, const Scheduler::Chunk& b) {
  return a.id == b.id && a.count == b.count && a.last == b.last;
}
void PrintTo(const Scheduler::Chunk& c, std::ostream* out) {
  *out << "{" << c.id << ", " << c.count << (c.last ? ", last}" : "}");
}

namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using Chunk = Scheduler::Chunk;

Scheduler scheduler(int64_t step_tokens = 100, int64_t queue_limit = 1000) {
  return Scheduler({.step_tokens = step_tokens, .min_prefill = 10, .queue_limit = queue_limit});
}

// Submits, admits and starts one request.
void run(Scheduler& s, RequestId id, int64_t prompt, int32_t priority = 0, int64_t states = 1) {
  ASSERT_TRUE(s.submit(id, priority, states));
  ASSERT_THAT(s.admit(states), ElementsAre(id));
  s.start(id, prompt);
}

TEST(Scheduler, AdmitsInArrivalOrderWhileStatesAreFree) {
  Scheduler s = scheduler();
  for (RequestId id : {7, 3, 5}) s.submit(id, 0, 1);
  EXPECT_EQ(s.waiting(), 3);
  EXPECT_THAT(s.admit(0), IsEmpty());
  EXPECT_THAT(s.admit(2), ElementsAre(7, 3));
  EXPECT_EQ(s.waiting(), 1);
  EXPECT_EQ(s.running(), 2);
  EXPECT_THAT(s.admit(9), ElementsAre(5));
}

TEST(Scheduler, OnlyDecodesWhileNoPromptIsLeftAndNobodyWhoWaitsFits) {
  Scheduler s = scheduler();
  EXPECT_TRUE(s.only_decodes(5));
  run(s, 1, 150);
  EXPECT_FALSE(s.only_decodes(0)) << "a prompt of two chunks";
  s.plan();
  EXPECT_FALSE(s.only_decodes(0));
  s.plan();
  EXPECT_TRUE(s.only_decodes(0));
  s.submit(2, 0, 3);
  s.submit(3, 0, 1);
  EXPECT_TRUE(s.only_decodes(2)) << "the first in the queue needs three states";
  EXPECT_FALSE(s.only_decodes(3));
  s.remove(2);
  EXPECT_FALSE(s.only_decodes(1));
  EXPECT_TRUE(s.only_decodes(0));
}

TEST(Scheduler, AdmitsHigherPrioritiesFirst) {
  Scheduler s = scheduler();
  s.submit(1, 0, 1);
  s.submit(2, -1, 1);
  s.submit(3, 5, 1);
  s.submit(4, 5, 1);
  EXPECT_THAT(s.admit(4), ElementsAre(3, 4, 1, 2));
}

TEST(Scheduler, OrdersTheExtremePriorities) {
  Scheduler s = scheduler();
  s.submit(1, INT32_MIN, 1);
  s.submit(2, INT32_MAX, 1);
  s.submit(3, 0, 1);
  EXPECT_THAT(s.admit(3), ElementsAre(2, 3, 1));
}

TEST(Scheduler, NeverInterruptsWhatRunsForAHigherPriority) {
  Scheduler s = scheduler();
  run(s, 1, 0);
  s.submit(2, 9, 1);
  EXPECT_THAT(s.admit(0), IsEmpty());
  EXPECT_THAT(s.plan().decode, ElementsAre(1));
}

TEST(Scheduler, HoldsSmallRequestsBehindALargeOneSoThatItCannotStarve) {
  Scheduler s = scheduler();
  s.submit(1, 0, 4);
  s.submit(2, 0, 1);
  EXPECT_THAT(s.admit(3), IsEmpty());
  EXPECT_THAT(s.admit(4), ElementsAre(1));
  EXPECT_THAT(s.admit(1), ElementsAre(2));
}

TEST(Scheduler, AdmitsEveryRequestOfAPriorityHoweverManyComeAfterIt) {
  Scheduler s = scheduler();
  s.submit(1, 0, 3);
  for (RequestId id = 2; id < 100; ++id) {
    s.submit(id, 0, 1);
    if (id < 50) {
      EXPECT_THAT(s.admit(2), IsEmpty());
    }
  }
  EXPECT_THAT(s.admit(3), ElementsAre(1));
}

TEST(Scheduler, DecodesEveryRunningRequestInEachStep) {
  Scheduler s = scheduler();
  for (RequestId id : {1, 2, 3}) run(s, id, 0);
  for (int i = 0; i < 3; ++i) EXPECT_THAT(s.plan().decode, ElementsAre(1, 2, 3));
}

TEST(Scheduler, CutsAPromptIntoChunksOfTheBudget) {
  Scheduler s = scheduler(100);
  run(s, 1, 250);
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 100, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 100, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 50, true}));
  const Scheduler::Plan decoding = s.plan();
  EXPECT_THAT(decoding.prefill, IsEmpty());
  EXPECT_THAT(decoding.decode, ElementsAre(1));
}

TEST(Scheduler, FillsTheBudgetWithTheNextPrompts) {
  Scheduler s = scheduler(100);
  run(s, 1, 30);
  run(s, 2, 50);
  run(s, 3, 50);
  EXPECT_THAT(s.plan().prefill,
              ElementsAre(Chunk{1, 30, true}, Chunk{2, 50, true}, Chunk{3, 20, false}));
  const Scheduler::Plan next = s.plan();
  EXPECT_THAT(next.decode, ElementsAre(1, 2));
  EXPECT_THAT(next.prefill, ElementsAre(Chunk{3, 30, true}));
}

TEST(Scheduler, TakesTheDecodingTokensOffThePrefillBudget) {
  Scheduler s = scheduler(100);
  run(s, 1, 0, 0, /*states=*/20);
  run(s, 2, 0, 0, /*states=*/20);
  run(s, 3, 500);
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{3, 60, false}));
}

TEST(Scheduler, PrefillsALittleHoweverManyDecode) {
  Scheduler s = scheduler(100);
  run(s, 1, 0, 0, /*states=*/100);
  run(s, 2, 25);
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{2, 10, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{2, 10, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{2, 5, true}));
}

TEST(Scheduler, HoldsRunningStreamsUpByAtMostOneChunkHoweverLongAPromptIs) {
  Scheduler s = scheduler(100);
  for (RequestId id : {1, 2, 3}) run(s, id, 0);
  run(s, 4, 100000);
  int64_t fed = 0;
  while (fed < 100000) {
    const Scheduler::Plan plan = s.plan();
    ASSERT_THAT(plan.decode, ElementsAre(1, 2, 3)) << "after " << fed << " tokens";
    ASSERT_EQ(plan.prefill.size(), 1u);
    ASSERT_LE(plan.prefill[0].count + 3, 100);
    fed += plan.prefill[0].count;
    ASSERT_EQ(plan.prefill[0].last, fed == 100000);
  }
}

TEST(Scheduler, PrefillsAnUrgentPromptBeforeOneThatHasBegun) {
  Scheduler s = scheduler(100);
  run(s, 1, 300);
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 100, false}));
  run(s, 2, 120, /*priority=*/1);
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{2, 100, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{2, 20, true}, Chunk{1, 80, false}));
}

TEST(Scheduler, EndsAChunkWhereASnapshotIsWanted) {
  Scheduler s = scheduler(100);
  s.submit(1, 0, 1);
  s.admit(1);
  s.start(1, 300, /*cut=*/130);
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 100, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 30, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 100, false}));
  EXPECT_THAT(s.plan().prefill, ElementsAre(Chunk{1, 70, true}));
}

TEST(Scheduler, ForgetsACancelledRequestWhereverItStands) {
  Scheduler s = scheduler(100);
  s.submit(1, 0, 1);
  s.remove(1);  // waiting
  EXPECT_EQ(s.waiting(), 0);
  EXPECT_THAT(s.admit(1), IsEmpty());

  s.submit(2, 0, 1);
  s.admit(1);
  s.remove(2);  // admitted, not started
  EXPECT_EQ(s.running(), 0);
  EXPECT_TRUE(s.plan().empty());

  run(s, 3, 250);
  s.plan();
  s.remove(3);  // in the middle of its prompt
  EXPECT_TRUE(s.plan().empty());

  run(s, 4, 0);
  EXPECT_THAT(s.plan().decode, ElementsAre(4));
  s.remove(4);  // decoding
  EXPECT_TRUE(s.plan().empty());

  s.remove(4);  // gone, and unknown
  s.remove(99);
  EXPECT_EQ(s.waiting() + s.running(), 0);
}

TEST(Scheduler, LetsTheOthersGoOnWhenTheHeadOfTheQueueIsCancelled) {
  Scheduler s = scheduler();
  s.submit(1, 0, 8);
  s.submit(2, 0, 1);
  EXPECT_THAT(s.admit(1), IsEmpty());
  s.remove(1);
  EXPECT_THAT(s.admit(1), ElementsAre(2));
}

TEST(Scheduler, RefusesWhatExceedsTheQueueAndTakesMoreOnceThereIsRoom) {
  Scheduler s = scheduler(100, /*queue_limit=*/2);
  EXPECT_TRUE(s.submit(1, 0, 1));
  EXPECT_TRUE(s.submit(2, 0, 1));
  EXPECT_FALSE(s.submit(3, 9, 1)) << "a high priority makes no room";
  EXPECT_EQ(s.waiting(), 2);
  s.admit(1);
  EXPECT_TRUE(s.submit(3, 0, 1)) << "what runs does not count";
  EXPECT_FALSE(s.submit(4, 0, 1));
  s.remove(2);
  EXPECT_TRUE(s.submit(4, 0, 1));
  EXPECT_THAT(s.admit(9), ElementsAre(3, 4));
}

TEST(Scheduler, PlansNothingWhenNothingRuns) {
  Scheduler s = scheduler();
  EXPECT_TRUE(s.plan().empty());
  s.submit(1, 0, 1);
  EXPECT_TRUE(s.plan().empty());
}

TEST(Scheduler, IsEmptyAfterEveryRequestIsRemovedAtShutdown) {
  Scheduler s = scheduler();
  for (RequestId id = 1; id <= 20; ++id) s.submit(id, static_cast<int32_t>(id % 3), 1);
  for (RequestId id : s.admit(7)) s.start(id, static_cast<int64_t>(id % 2) * 50);
  s.plan();
  for (RequestId id = 1; id <= 20; ++id) s.remove(id);
  EXPECT_EQ(s.waiting(), 0);
  EXPECT_EQ(s.running(), 0);
  EXPECT_THAT(s.admit(20), IsEmpty());
  EXPECT_TRUE(s.plan().empty());
}

}  // namespace
}  // namespace gsa
