// The GSA recurrence over many tokens of a sequence at once (prefill), on tensor cores.
//
// A segment is cut into chunks of kChunk tokens and a chunk into blocks of kBlock. With b_t the sum
// of log g up to token t of a chunk and Hk0, Hv0 the memories at its start:
//   q_t . Hk  = exp(b_t) (q_t . Hk0) + sum_{i<=t} (q_t . k_i) s_i exp(b_t - b_i)
//   p_t       = softmax_M of that
//   p_t . Hv  = (p_t exp(b_t)) . Hv0 + sum_{i<=t} (sum_m p_t s_i exp(b_t - b_i)) v_i
//   Hk        = Hk0 diag(exp b_C) + sum_i k_i (x) (s_i exp(b_C - b_i)), and so Hv with v
// What a block writes is kept as it stands at the end of that block; a sum over blocks is then
// formed oldest first, multiplied by the decay of each block passed. So every decay is a product of
// gates, in [0, 1]: strong gates underflow to 0, and nothing can overflow. Inside a block decays
// are running products too, unless all are mild (ChunkWeights).
#pragma once

#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/common.cuh"

namespace gsa::cuda {

constexpr int kChunk = 64;
constexpr int kBlock = 16;

// A piece of at most kChunk tokens of one segment.
struct ChunkTile {
  int32_t segment = 0;    // which of the segments that were cut
  int32_t first_row = 0;  // row of its first token in the packed step
  int32_t count = 0;
  int32_t index = 0;  // of the chunk in its segment
  int32_t slot = 0;   // its place in the scratch memory
};

// Where chunk 0 of a segment stands in the scratch memory; its other chunks follow. Segments in
// ascending order of rows do not overlap, and all stand below tokens / kChunk + segments.
__host__ __device__ inline int32_t first_chunk_slot(const Segment& segment, int32_t index) {
  return segment.first / kChunk + index;
}

// The chunks of segments that stand in ascending order of their rows.
std::vector<ChunkTile> cut_into_chunks(std::span<const Segment> segments);

// Device memory that says what a step consists of: the segments, and cut_into_chunks() of them.
struct ChunkStep {
  const Segment* segments = nullptr;
  int segment_count = 0;
  const ChunkTile* tiles = nullptr;
  int tile_count = 0;
};

struct ChunkArgs;

class ChunkedMix {
 public:
  // Takes scratch memory for steps of at most so many tokens in so many segments.
  void reserve(int64_t tokens, int64_t segments, const MixShape& shape);

  // Queues Backend::mix for the segments of `step`; other rows of args.qkvf and args.out stay as
  // they are. For kT2R the q and k columns have gone through the learned map already.
  // REQUIRES: reserve() of the same shape; at least one segment.
  void run(const Launch& how, const Mix& args, const ChunkStep& step);

  // The arguments of the kernels that run() queues.
  ChunkArgs kernel_args(const Mix& args, const ChunkStep& step) const;

 private:
  int64_t slots_ = 0;
  size_t shared_limit_ = 0;
  MixShape shape_;
  DeviceArray<float> keep_;
  DeviceArray<float> write_;
  DeviceArray<float> aged_write_;
  DeviceArray<float> block_decay_;
  DeviceArray<float> memories_;
};

}  // namespace gsa::cuda
