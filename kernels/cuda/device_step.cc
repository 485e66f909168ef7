#include "kernels/cuda/device_step.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "kernels/cuda/stream_plan.h"

namespace gsa::cuda {
namespace {

constexpr size_t kAlignment = 16;

size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

int64_t bucket_of(int64_t n) { return n <= kStreamTokens ? n : (n + 7) / 8 * 8; }

std::vector<int64_t> bucket_sizes(int64_t most) {
  most = std::min<int64_t>(most, 256);
  std::vector<int64_t> sizes;
  for (int64_t n = 1; n <= most; ++n) {
    if (n == most || bucket_of(n + 1) != bucket_of(n)) sizes.push_back(n);
  }
  return sizes;
}

void DeviceStep::reserve(const StepLimits& limits) {
  // Every token may be a segment and a tile of its own.
  const size_t rows = std::max(limits.tokens, limits.logit_rows);
  slot_bytes_ =
      rows * (3 * sizeof(int32_t) + sizeof(DecodeRow) + sizeof(Segment) + sizeof(ChunkTile)) +
      kParts * kAlignment;
  device_ = DeviceArray<std::byte>(slot_bytes_);
  pinned_ = PinnedArray<std::byte>(slot_bytes_ * kSlots);
  for (Event& event : uploaded_) {
    event = Event();
    GSA_CUDA_CHECK(cudaEventCreateWithFlags(event.out(), cudaEventDisableTiming));
  }
}

void DeviceStep::arrange(const Step& step, int64_t rows) {
  host_tokens_.assign(step.tokens.begin(), step.tokens.end());
  host_tokens_.resize(rows, 0);
  host_logit_rows_.assign(step.logit_rows.begin(), step.logit_rows.end());
  host_decode_.clear();
  host_segments_.clear();
  for (const Segment& segment : step.segments) {
    if (segment.count > 1) host_segments_.push_back(segment);
  }
  long_segments_ = static_cast<int64_t>(host_segments_.size());
  const auto add_single = [&](const Segment& segment) {
    host_decode_.push_back({segment.first, segment.state});
    host_segments_.push_back(segment);
  };
  for (const Segment& segment : step.segments) {
    if (segment.count == 1) add_single(segment);
  }
  for (int32_t row = static_cast<int32_t>(step.tokens.size()); row < rows; ++row) {
    add_single({.state = -1, .first = row, .count = 1});
    host_logit_rows_.push_back(row);
  }
  host_tiles_ = cut_into_chunks(host_segments_);
}

void DeviceStep::upload(const Step& step, int64_t rows, cudaStream_t stream) {
  arrange(step, rows);
  decode_count_ = static_cast<int64_t>(host_decode_.size());
  tile_count_ = static_cast<int64_t>(host_tiles_.size());
  // Segments of one token are one tile each.
  long_tiles_ = tile_count_ - decode_count_;

  const Event& uploaded = uploaded_[slot_];
  GSA_CUDA_CHECK(cudaEventSynchronize(uploaded.get()));
  std::byte* slot = pinned_.get() + slot_ * slot_bytes_;
  size_t used = 0;
  const auto put = [&](Part part, const auto& values) {
    const size_t bytes = values.size() * sizeof(values[0]);
    offsets_[part] = used;
    if (bytes > 0) std::memcpy(slot + used, values.data(), bytes);
    used = aligned(used + bytes);
    assert(used <= slot_bytes_);
  };
  put(kTokens, host_tokens_);
  put(kLogitRows, host_logit_rows_);
  put(kDecode, host_decode_);
  put(kSegments, host_segments_);
  put(kTiles, host_tiles_);
  put(kDrawnRows, step.drawn_rows);
  GSA_CUDA_CHECK(cudaMemcpyAsync(device_.get(), slot, used, cudaMemcpyHostToDevice, stream));
  GSA_CUDA_CHECK(cudaEventRecord(uploaded.get(), stream));
  slot_ = (slot_ + 1) % kSlots;
}

}  // namespace gsa::cuda
