#pragma once

#include <vector>

#include "engine/scheduler.h"
#include "kernels/tensor.h"
#include "model/gsa_model.h"

namespace gsa {

class Sequence;
struct Task;

// A step that is queued on the device, its tokens not read yet: for whom it computes what.
struct QueuedStep {
  // One token more of a sequence. Null where the task was finished in the meantime: nobody asks for
  // the result any more.
  struct Decode {
    Task* task;
    Sequence* sequence;
  };
  struct Prefill {
    Task* task;
    Scheduler::Chunk chunk;
    Logits wanted;
  };

  std::vector<Decode> decode;    // row i of the logits and of the draw is that of decode[i]
  std::vector<Prefill> prefill;  // whose rows of logits follow
  TensorView logits{};           // [R, N], until another step is queued
  bool ahead = false;            // queued before the tokens of the step before were read

  bool empty() const { return decode.empty() && prefill.empty(); }

  // The task is about to end.
  void forget(const Task& task) {
    for (Decode& d : decode) {
      if (d.task == &task) d = {nullptr, nullptr};
    }
  }
};

}  // namespace gsa
