// How long steps take by the device's own clock.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/common.cuh"

namespace gsa::cuda {

// Adds up the time from the beginning of a step to the end of the draw from its logits. Draws are
// queued and collected in one order, at most two at a time; those that no step came before count
// nothing.
class StepTimer {
 public:
  // Creates the events; called once, before the others.
  void reserve() {
    for (Span& span : spans_) {
      GSA_CUDA_CHECK(cudaEventCreate(span.begin.out()));
      GSA_CUDA_CHECK(cudaEventCreate(span.end.out()));
    }
  }

  void begin(cudaStream_t stream) {
    GSA_CUDA_CHECK(cudaEventRecord(next().begin.get(), stream));
    stepping_ = true;
  }

  void draw_queued(cudaStream_t stream) {
    next().timed = stepping_;
    if (stepping_) GSA_CUDA_CHECK(cudaEventRecord(next().end.get(), stream));
    stepping_ = false;
    ++queued_;
  }

  // Waits for the oldest draw.
  void draw_collected() {
    const Span& span = spans_[collected_++ % spans_.size()];
    if (!span.timed) return;
    float milliseconds = 0;
    GSA_CUDA_CHECK(cudaEventSynchronize(span.end.get()));
    GSA_CUDA_CHECK(cudaEventElapsedTime(&milliseconds, span.begin.get(), span.end.get()));
    seconds_ += 1e-3 * milliseconds;
  }

  void draws_dropped() { collected_ = queued_; }

  double seconds() const { return seconds_; }

 private:
  struct Span {
    Event begin, end;
    bool timed = false;
  };
  Span& next() { return spans_[queued_ % spans_.size()]; }

  std::array<Span, 2> spans_;
  int64_t queued_ = 0, collected_ = 0;
  bool stepping_ = false;  // a step has begun whose logits nobody drew from yet
  double seconds_ = 0;
};

}  // namespace gsa::cuda
