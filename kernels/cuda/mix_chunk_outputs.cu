// What every token reads from the memories as they are after it.
#include "kernels/cuda/mix_chunk_kernels.cuh"
#include "kernels/cuda/mix_chunk_tiles.cuh"
#include "kernels/cuda/mix_chunk_weights.cuh"

namespace gsa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSlice = 32;  // of K
constexpr int kPart = 64;   // of M and of V

// A block has one chunk of one query head:
//   1. pairs = q . k and scores = q . hk, hk before the chunk; slices of K pass through a ring
//   2. from these to weights (ChunkWeights)
//   3. out = silu(scores . hv + pairs . v); parts of V pass through the same ring as panels
template <int kSlots, int kStages>
struct OutputKernel {
  using Weights = ChunkWeights<kSlots>;
  static constexpr int kParts = Weights::kParts;
  static constexpr int kScoreStride = Weights::kScoreStride;
  static constexpr int kPairStride = Weights::kPairStride;
  static_assert(Weights::kThreads == kThreads && Weights::kPart == kPart);

  using Queries = Tile<kThreads, kChunk, kSlice, kSlice + 4>;
  using Keys = Queries;
  using KeyMemory = Tile<kThreads, kSlice, kPart, kPart + 8>;
  static constexpr int kStageFloats = Queries::kFloats + Keys::kFloats + KeyMemory::kFloats;
  static constexpr int kRingFloats = kStages * kStageFloats;

  using Values = Tile<kThreads, kChunk, kPart, kPart + 8>;
  using ValueMemory = Tile<kThreads, kPart, kPart, kPart + 4>;
  static constexpr int kPanelFloats = Values::kFloats;
  static constexpr int kPanels = kRingFloats / kPanelFloats;
  static constexpr int kPanelsOfPart = kParts + 1;  // hv by parts of M, then v
  static constexpr int kUsedPanels = 2;             // by phase 2
  static_assert(kPanels > kUsedPanels && Weights::kGateFloats <= kPanelFloats);

  static constexpr int kScoreFloats = kChunk * kScoreStride;
  static constexpr int kPairFloats = kChunk * kPairStride;
  static constexpr size_t kSharedBytes =
      sizeof(float) * (kRingFloats + kScoreFloats + kPairFloats + kBlocks * kSlots);

  const ChunkArgs& args;
  ChunkTile tile;
  // Of this chunk and head:
  const float* queries;
  const float* keys;
  const float* values;
  const float* key_memory;    // [padded_K, kSlots]
  const float* value_memory;  // [padded_V, kSlots]
  float* out;
  // In shared memory:
  float* ring;
  Weights weights;

  // ---- Phase 1

  __device__ float* stage(unsigned i) const { return ring + i % kStages * kStageFloats; }

  __device__ void copy_slice(int i, int part, int k) const {
    if (part < kParts) {
      float* to = stage(i);
      Queries::copy(to, queries + k, args.width, tile.count, args.K - k, args.vectors);
      to += Queries::kFloats;
      if (part == 0) Keys::copy(to, keys + k, args.width, tile.count, args.K - k, args.vectors);
      to += Keys::kFloats;
      KeyMemory::template copy<kSlots>(to, key_memory + k * kSlots + part * kPart);
    }
    copy_commit();
  }

  // Add a slice to a 32 x 32 part of pairs, or of scores.
  __device__ __forceinline__ void multiply_keys(int i, int row, int column,
                                                float (&sums)[2][4][4]) const {
    const float* a_tile = stage(i) + row * Queries::kStride;
    const float* b_tile = stage(i) + Queries::kFloats + column * Keys::kStride;
#pragma unroll
    for (int k = 0; k < kSlice; k += 16) {
      float a[2][2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_a(a_tile + m * 16 * Queries::kStride + k, Queries::kStride, a[m][0]);
        load_a(a_tile + m * 16 * Queries::kStride + k + 8, Queries::kStride, a[m][1]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float b[4];
        load_b(b_tile + n * 8 * Keys::kStride + k, Keys::kStride, b);
        multiply_add(sums[0][n], a[0][0], b[0], b[1]);
        multiply_add(sums[1][n], a[1][0], b[0], b[1]);
        multiply_add(sums[0][n], a[0][1], b[2], b[3]);
        multiply_add(sums[1][n], a[1][1], b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void multiply_memory(int i, int row, int column,
                                                  float (&sums)[2][4][4]) const {
    const int lane = threadIdx.x % 32;
    const float* a_tile = stage(i) + row * Queries::kStride;
    const float* b = stage(i) + Queries::kFloats + Keys::kFloats + lane % 4 * KeyMemory::kStride +
                     column + lane / 4;
#pragma unroll
    for (int k = 0; k < kSlice; k += 8) {
      float a[2][4];
      load_a(a_tile + k, Queries::kStride, a[0]);
      load_a(a_tile + 16 * Queries::kStride + k, Queries::kStride, a[1]);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float b0 = b[k * KeyMemory::kStride + n * 8];
        const float b1 = b[(k + 4) * KeyMemory::kStride + n * 8];
        multiply_add(sums[0][n], a[0], b0, b1);
        multiply_add(sums[1][n], a[1], b0, b1);
      }
    }
  }

  __device__ static void store_sums(float* to, int stride, const float (&sums)[2][4][4]) {
    const int lane = threadIdx.x % 32;
    to += lane / 4 * stride + lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float(&x)[4] = sums[m][n];
        *reinterpret_cast<float2*>(to + m * 16 * stride + n * 8) = {x[0], x[1]};
        *reinterpret_cast<float2*>(to + (m * 16 + 8) * stride + n * 8) = {x[2], x[3]};
      }
    }
  }

  // Warps 0 to 3 have a part of pairs each, the others one of scores.
  __device__ void read_keys() const {
    const int warp = threadIdx.x / 32;
    const int row = warp % 2 * 32;
    const int column = warp / 2 % 2 * 32;
    int next = 0;  // to copy: slice number, and where it is
    int next_part = 0;
    int next_k = 0;
    auto copy_next = [&] {
      copy_slice(next++, next_part, next_k);
      next_k += kSlice;
      if (next_k >= args.K) ++next_part, next_k = 0;
    };
    for (int i = 0; i < kStages - 1; ++i) copy_next();
    int slice = 0;
    for (int part = 0; part < kParts; ++part) {
      float sums[2][4][4] = {};
      for (int k = 0; k < args.K; k += kSlice, ++slice) {
        copy_wait<kStages - 2>();
        Queries::activate(stage(slice), args.relu);
        __syncthreads();  // the stage is complete, and the one before it is free
        copy_next();
        if (warp >= 4) {
          multiply_memory(slice, row, column, sums);
        } else if (part == 0 && column <= row) {
          multiply_keys(slice, row, column, sums);
        }
      }
      if (warp >= 4) {
        store_sums(weights.scores + row * kScoreStride + part * kPart + column, kScoreStride, sums);
      } else if (part == 0) {
        store_sums(weights.pairs + row * kPairStride + column, kPairStride, sums);
      }
    }
    __syncthreads();
  }

  // ---- Phase 3

  __device__ int panels() const { return (args.V + kPart - 1) / kPart * kPanelsOfPart; }
  __device__ float* panel(unsigned i) const {
    return ring + (i + kUsedPanels) % kPanels * kPanelFloats;
  }

  __device__ void copy_panel(unsigned i) const {
    if (i < panels()) {
      const int v = i / kPanelsOfPart * kPart;
      const int part = i % kPanelsOfPart;
      if (part < kParts) {
        ValueMemory::template copy<kSlots>(panel(i), value_memory + v * kSlots + part * kPart);
      } else {
        Values::copy(panel(i), values + v, args.width, tile.count, args.V - v, args.vectors);
      }
    }
    copy_commit();
  }

  __device__ void store_outputs(int row, int v, const float (&sums)[4][4]) const {
    const int lane = threadIdx.x % 32;
    const int64_t stride = static_cast<int64_t>(args.H) * args.V;
    v += lane % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = row + half * 8 + lane / 4;
      if (t >= tile.count) return;
      float* to = out + t * stride + v;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float2 y = {fast_silu(sums[n][half * 2]), fast_silu(sums[n][half * 2 + 1])};
        if (args.vectors) {
          if (v + n * 8 < args.V) *reinterpret_cast<float2*>(to + n * 8) = y;
        } else {
          if (v + n * 8 < args.V) to[n * 8] = y.x;
          if (v + n * 8 + 1 < args.V) to[n * 8 + 1] = y.y;
        }
      }
    }
  }

  // A warp has 16 tokens and 32 columns of V.
  __device__ void read_values() const {
    const int lane = threadIdx.x % 32;
    const int block = threadIdx.x / 64;
    const int row = block * kBlock;
    const int column = threadIdx.x / 32 % 2 * 32;
    float p[kPart / 8][4];
    float of_values[kChunk / 8][4];
#pragma unroll
    for (int k = 0; k < kChunk / 8; ++k) {
      if (kParts == 1) weights.load_reads(block, k * 8, p[k]);
      load_a(weights.pairs + row * kPairStride + k * 8, kPairStride, of_values[k]);
      round_all(of_values[k]);
    }
    unsigned i = 0;
    auto next_panel = [&] {
      copy_wait<kPanels - 2>();
      __syncthreads();  // the panel is complete, and the one before it is free
      copy_panel(i + kPanels - 1);
      return panel(i++);
    };
    for (int v = 0; v < args.V; v += kPart) {
      float sums[4][4] = {};
      for (int part = 0; part < kParts; ++part) {
        const float* b_tile = next_panel() + column * ValueMemory::kStride;
#pragma unroll
        for (int k = 0; k < kPart / 8; k += 2) {
          if (kParts > 1) {
            weights.load_reads(block, part * kPart + k * 8, p[k]);
            weights.load_reads(block, part * kPart + k * 8 + 8, p[k + 1]);
          }
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            float b[4];
            load_b(b_tile + n * 8 * ValueMemory::kStride + k * 8, ValueMemory::kStride, b);
            multiply_add(sums[n], p[k], b[0], b[1]);
            multiply_add(sums[n], p[k + 1], b[2], b[3]);
          }
        }
      }
      const float* b = next_panel() + lane % 4 * Values::kStride + column + lane / 4;
#pragma unroll
      for (int k = 0; k < kChunk; k += 8) {
        if (k >= row + kBlock) break;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          multiply_add(sums[n], of_values[k / 8], b[k * Values::kStride + n * 8],
                       b[(k + 4) * Values::kStride + n * 8]);
        }
      }
      store_outputs(row, v + column, sums);
    }
  }

  __device__ void run() const {
    read_keys();
    // Panels that phase 2 leaves alone are copied meanwhile.
    for (int i = 0; i < kPanels - kUsedPanels; ++i) copy_panel(i);
    weights.run();
    copy_panel(kPanels - kUsedPanels);
    grid_release();
    read_values();
  }
};

template <int kSlots, int kStages>
__global__ void __launch_bounds__(kThreads, kSlots == 64 && kStages == 2 ? 2 : 1)
    chunk_outputs(const __grid_constant__ ChunkArgs args) {
  using Kernel = OutputKernel<kSlots, kStages>;
  extern __shared__ float4 output_shared[];
  grid_wait();
  const ChunkTile tile = args.step.tiles[blockIdx.y];
  const int h = blockIdx.x;
  const int g = h / (args.H / args.G);
  const int64_t row = tile.first_row * args.width;
  const int64_t memory = static_cast<int64_t>(tile.slot) * args.G + g;
  const float* key_memory = args.memories + memory * (args.padded_K + args.padded_V) * kSlots;
  float* ring = reinterpret_cast<float*>(output_shared);
  float* scores = ring + Kernel::kRingFloats;
  float* pairs = scores + Kernel::kScoreFloats;
  const Kernel kernel = {
      .args = args,
      .tile = tile,
      .queries = args.qkvf + row + h * args.K,
      .keys = args.qkvf + row + args.k_column + g * args.K,
      .values = args.qkvf + row + args.v_column + g * args.V,
      .key_memory = key_memory,
      .value_memory = key_memory + args.padded_K * kSlots,
      .out = args.out + (static_cast<int64_t>(tile.first_row) * args.H + h) * args.V,
      .ring = ring,
      .weights = {.M = args.M,
                  .keep = args.keep + memory * kChunk * kSlots,
                  .write = args.write + memory * kChunk * kSlots,
                  .scores = scores,
                  .pairs = pairs,
                  .keeps = ring + Kernel::kPanelFloats,
                  .writes = ring,
                  .decays = pairs + Kernel::kPairFloats}};
  kernel.run();
}

template <int kSlots, int kStages>
void queue(const Launch& how, const ChunkArgs& args) {
  const size_t bytes = OutputKernel<kSlots, kStages>::kSharedBytes;
  allow_shared_memory(chunk_outputs<kSlots, kStages>, bytes);
  const Grid grid = {.blocks = dim3(args.H, args.step.tile_count),
                     .threads = dim3(kThreads),
                     .shared_bytes = bytes};
  launch(how, grid, chunk_outputs<kSlots, kStages>, args);
}

}  // namespace

void queue_chunk_outputs(const Launch& how, const ChunkArgs& args) {
  if (args.padded_M == 256) return queue<256, 2>(how, args);
  if (args.padded_M == 128) return queue<128, 2>(how, args);
  // Few blocks get a deep ring each, many share the multiprocessors.
  if (args.H * args.step.tile_count <= how.multiprocessors &&
      OutputKernel<64, 4>::kSharedBytes <= args.shared_limit) {
    return queue<64, 4>(how, args);
  }
  queue<64, 2>(how, args);
}

}  // namespace gsa::cuda
