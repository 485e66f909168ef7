#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/loaded_model.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "model/state_pool.h"
#include "text/stop_strings.h"
#include "text/stream_decoder.h"

namespace gsa {

// One completion of a request while it runs.
class Sequence {
 public:
  Sequence(const LoadedModel& model, const Request& request, std::span<const int32_t> context,
           int32_t index);

  // A token was drawn: adds it to the completion and returns the text that can be shown. May end
  // the sequence.
  std::string accept(SampleResult result);

  // Ends the sequence from outside; returns text that was held back.
  std::string end(FinishReason reason);

  int32_t index() const { return index_; }  // among the request's completions
  bool ended() const { return ended_; }
  // Whether the next token is the last that the request allows.
  bool draws_its_last() const {
    return static_cast<int64_t>(completion.tokens.size()) + 1 >= request_.max_tokens;
  }
  SampleRow sample_row() const { return sampler_.row(); }
  // For the token after the next one, which is drawn by row `row` of the draw before and is not
  // known yet; to be asked for once before each accept() at most.
  SampleRow sample_row_after(int32_t row) { return sampler_.row_after(row); }
  int32_t last_token() const { return completion.tokens.back(); }

  StateHandle state;
  Completion completion;
  bool closing = false;  // ended, but its last token is still to be taken in for the snapshot

 private:
  bool is_stop(int32_t token) const;

  const LoadedModel& model_;
  const Request& request_;
  int32_t index_;
  Sampler sampler_;
  std::optional<StreamDecoder> decoder_;
  StopStrings stops_;
  bool ended_ = false;
};

// A request from submission to its result.
struct Task {
  RequestId id = 0;
  Request request;
  ResultCallback on_result;
  DeltaCallback on_delta;
  std::atomic<bool> cancelled = false;

  // Set when the task is admitted; touched by the engine's thread alone.
  std::vector<int32_t> context;  // tokens of `from`, then the prompt
  int64_t fed = 0;               // of context, taken in by the state
  int64_t snapshot_at = 0;       // a junction of the prefix cache; 0: none
  std::vector<StateHandle> states;
  std::vector<std::unique_ptr<Sequence>> sequences;  // empty until the prompt is done
  Result result;

  bool admitted() const { return !context.empty(); }
  bool completed() const;

  // Ends what still runs of a request that was cancelled (or is late) and whose snapshots are
  // wanted: each sequence has one step left, which takes its last token in. False where there is
  // none to take, and the request can end at once.
  bool end_for_snapshot(bool late);
};

}  // namespace gsa
