// What the kernels of a step look up in device memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/mix_decode.cuh"

namespace gsa::cuda {

// Rows to which a step that decodes n sequences is filled up, so that one recording serves all
// sizes of its bucket.
int64_t bucket_of(int64_t n);
// The largest number of sequences of every bucket, up to `most` and to 256: to prepare steps of
// more would take a start too long.
std::vector<int64_t> bucket_sizes(int64_t most);

// The index arrays of a step, uploaded in one piece. Their places depend on the counts alone, so
// that a recorded step finds those of a later one with equal counts.
class DeviceStep {
 public:
  void reserve(const StepLimits& limits);

  // Queues the upload of the step, filled up to `rows` tokens with rows that belong to no state.
  void upload(const Step& step, int64_t rows, cudaStream_t stream);

  // In device memory.
  int32_t* tokens() { return at<int32_t>(kTokens); }                       // [rows]
  const int32_t* drawn_rows() const { return at<int32_t>(kDrawnRows); }    // Step::drawn_rows
  const int32_t* logit_rows() const { return at<int32_t>(kLogitRows); }    // Step::logit_rows
  const DecodeRow* decode_rows() const { return at<DecodeRow>(kDecode); }  // segments of one token
  int64_t decode_count() const { return decode_count_; }
  const Segment* segments() const { return at<Segment>(kSegments); }  // all, long ones first
  int64_t long_segments() const { return long_segments_; }
  const ChunkTile* tiles() const { return at<ChunkTile>(kTiles); }  // of all segments, in order
  int64_t tile_count() const { return tile_count_; }
  int64_t long_tiles() const { return long_tiles_; }  // of the long segments

 private:
  // Drawn rows come last, since steps that take them from the draw are replayed as others are.
  enum Part { kTokens, kLogitRows, kDecode, kSegments, kTiles, kDrawnRows, kParts };
  static constexpr int kSlots = 4;

  template <typename T>
  T* at(Part part) const {
    return reinterpret_cast<T*>(device_.get() + offsets_[part]);
  }
  void arrange(const Step& step, int64_t rows);

  // The step being built, in host memory.
  std::vector<int32_t> host_tokens_, host_logit_rows_;
  std::vector<DecodeRow> host_decode_;
  std::vector<Segment> host_segments_;
  std::vector<ChunkTile> host_tiles_;

  // Uploads go through page-locked slots in turn; an event tells when a slot may be written again.
  size_t slot_bytes_ = 0;
  DeviceArray<std::byte> device_;
  PinnedArray<std::byte> pinned_;
  std::array<Event, kSlots> uploaded_;
  int slot_ = 0;

  std::array<size_t, kParts> offsets_{};
  int64_t decode_count_ = 0, long_segments_ = 0, tile_count_ = 0, long_tiles_ = 0;
};

}  // namespace gsa::cuda
