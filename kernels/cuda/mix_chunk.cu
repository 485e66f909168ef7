#include "kernels/cuda/mix_chunk.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/mix_chunk_kernels.cuh"
#include "kernels/cuda/mix_chunk_tiles.cuh"

namespace gsa::cuda {
namespace {

constexpr int kGateThreads = 256;

// A block has one chunk of one memory; a thread has one slot of one block of tokens.
__global__ void __launch_bounds__(kGateThreads)
    chunk_gates(const __grid_constant__ ChunkArgs args) {
  grid_wait();
  const ChunkTile tile = args.step.tiles[blockIdx.x];
  const int g = blockIdx.y;
  const int block = threadIdx.x / kPad;
  const int count = tile.count - block * kBlock;
  const int64_t chunk = static_cast<int64_t>(tile.slot) * args.G + g;
  const float* from = args.qkvf + (tile.first_row + block * kBlock) * args.width + args.f_column +
                      static_cast<int64_t>(g) * args.M;
  for (int m = threadIdx.x % kPad; m < args.padded_M; m += kPad) {
    float f[kBlock];
#pragma unroll
    for (int t = 0; t < kBlock; ++t) {
      f[t] = t < count && m < args.M ? from[t * args.width + m] : 0.0f;
    }
    const int64_t row = (chunk * kChunk + block * kBlock) * args.padded_M + m;
    float decay = 1;
    float aged[kBlock];
#pragma unroll
    for (int t = kBlock - 1; t >= 0; --t) {
      const bool valid = t < count && m < args.M;
      const float log_g = log_gate(f[t], args.inverse_normalizer);
      const float keep = valid ? keep_of(log_g) : 1.0f;
      const float write = valid ? write_of(log_g) : 0.0f;
      const int64_t at = row + t * args.padded_M;
      args.keep[at] = keep;
      args.write[at] = write;
      aged[t] = tf32(write * decay);
      decay *= keep;
    }
    float* to = args.aged_write + (chunk * args.padded_M + m) * kChunk + block * kBlock;
#pragma unroll
    for (int t = 0; t < kBlock; t += 4) {
      *reinterpret_cast<float4*>(to + t) = {aged[t], aged[t + 1], aged[t + 2], aged[t + 3]};
    }
    args.block_decay[(chunk * kBlocks + block) * args.padded_M + m] = decay;
  }
  grid_release();
}

}  // namespace

void queue_chunk_gates(const Launch& how, const ChunkArgs& args) {
  const Grid grid = {.blocks = dim3(args.step.tile_count, args.G), .threads = dim3(kGateThreads)};
  launch(how, grid, chunk_gates, args);
}

std::vector<ChunkTile> cut_into_chunks(std::span<const Segment> segments) {
  std::vector<ChunkTile> tiles;
  for (size_t s = 0; s < segments.size(); ++s) {
    const Segment& segment = segments[s];
    const int32_t index = static_cast<int32_t>(s);
    for (int32_t begin = 0; begin < segment.count; begin += kChunk) {
      const int32_t chunk = begin / kChunk;
      tiles.push_back({.segment = index,
                       .first_row = segment.first + begin,
                       .count = std::min(kChunk, segment.count - begin),
                       .index = chunk,
                       .slot = first_chunk_slot(segment, index) + chunk});
    }
  }
  return tiles;
}

void ChunkedMix::reserve(int64_t tokens, int64_t segments, const MixShape& shape) {
  shape_ = shape;
  slots_ = tokens / kChunk + segments;
  int device = 0;
  int limit = 0;
  GSA_CUDA_CHECK(cudaGetDevice(&device));
  GSA_CUDA_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  shared_limit_ = limit;
  const size_t rows = slots_ * shape.G * padded_slots(shape.M);
  keep_ = DeviceArray<float>(rows * kChunk);
  write_ = DeviceArray<float>(rows * kChunk);
  aged_write_ = DeviceArray<float>(rows * kChunk);
  block_decay_ = DeviceArray<float>(rows * kBlocks);
  memories_ = DeviceArray<float>(rows * (padded(shape.K) + padded(shape.V)));
}

ChunkArgs ChunkedMix::kernel_args(const Mix& args, const ChunkStep& step) const {
  const MixShape& s = args.shape;
  const int64_t width = args.qkvf.shape[1];
  const int64_t k_column = s.H * s.K;
  const int64_t v_column = k_column + s.G * s.K;
  const int64_t f_column = v_column + s.G * s.V;
  assert(s.H == shape_.H && s.G == shape_.G && s.K == shape_.K && s.V == shape_.V &&
         s.M == shape_.M);
  assert(width == f_column + s.G * s.M && args.out.shape[1] == s.H * s.V);
  assert(step.segment_count > 0 && step.tile_count <= slots_);
  return {.step = step,
          .H = static_cast<int>(s.H),
          .G = static_cast<int>(s.G),
          .K = static_cast<int>(s.K),
          .V = static_cast<int>(s.V),
          .M = static_cast<int>(s.M),
          .padded_K = padded(s.K),
          .padded_V = padded(s.V),
          .padded_M = padded_slots(s.M),
          .relu = args.feature_map != FeatureMap::kSwish,
          .vectors = s.K % 4 == 0 && s.V % 4 == 0 && width % 4 == 0,
          .inverse_normalizer = static_cast<float>(1 / args.normalizer),
          .shared_limit = shared_limit_,
          .qkvf = args.qkvf.f32(),
          .width = width,
          .k_column = static_cast<int>(k_column),
          .v_column = static_cast<int>(v_column),
          .f_column = static_cast<int>(f_column),
          .out = args.out.f32(),
          .state_type = args.state_type,
          .hk = args.hk,
          .hv = args.hv,
          .keep = keep_.get(),
          .write = write_.get(),
          .aged_write = aged_write_.get(),
          .block_decay = block_decay_.get(),
          .memories = memories_.get()};
}

void ChunkedMix::run(const Launch& how, const Mix& args, const ChunkStep& step) {
  const ChunkArgs kernel_args = this->kernel_args(args, step);
  queue_chunk_gates(how, kernel_args);
  // These two need whole multiprocessors. Started early they find some of them taken, crowd into
  // the others and end later (by 4 to 25 percent on an H200).
  Launch alone = how;
  alone.overlap = false;
  queue_chunk_memories(alone, kernel_args);
  queue_chunk_outputs(alone, kernel_args);
}

}  // namespace gsa::cuda
