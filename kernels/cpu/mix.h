#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cpu/thread_pool.h"

namespace gsa::cpu {

// Scratch of the recurrence, taken once.
struct MixScratch {
  std::vector<float> write;   // [T, G*M]: 1 - keep
  std::vector<float> scores;  // [T, H, M]: q . Hk, then its softmax
  std::vector<float> mapped;  // [T, (H+G)*K]: products of the learned feature map

  void reserve(int64_t tokens, const MixShape& shape);
};

// Backend::mix for the given segments.
void mix(const Mix& args, std::span<const Segment> segments, MixScratch& scratch, ThreadPool& pool);

// Backend::convolve for the given segments.
void convolve(const Convolve& args, std::span<const Segment> segments, ThreadPool& pool);

}  // namespace gsa::cpu
