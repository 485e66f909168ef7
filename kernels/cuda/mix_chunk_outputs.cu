// What every token reads from the memories as they are after it.
#include "kernels/cuda/mix_chunk_kernels.cuh"
#include "kernels/cuda/mix_chunk_tiles.cuh"

namespace gsa::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSlice = 32;  // of K
constexpr int kPart = 64;   // of M and of V
constexpr int kPairStride = kChunk + 4;

// A block has one chunk of one query head:
//   1. pairs = q . k and scores = q . hk, hk before the chunk; slices of K pass through a ring
//   2. scores over the chunk, their softmax, and the weight of every value
//   3. p . hv + pairs v, parts of V passing through the same ring
template <int kSlots, int kStages>
struct OutputKernel {
  using Queries = Tile<kThreads, kChunk, kSlice, kSlice + 4>;
  using Keys = Queries;
  using KeyMemory = Tile<kThreads, kSlice, kPart, kPart + 8>;
  using Values = Tile<kThreads, kChunk, kPart, kPart + 8>;
  using ValueMemory = Tile<kThreads, kPart, kPart, kPart + 4>;
  static constexpr int kQueryStride = kSlice + 4;
  static constexpr int kPartStride = kPart + 8;
  static constexpr int kValueMemoryStride = kPart + 4;
  static constexpr int kStageFloats = Queries::kFloats + Keys::kFloats + KeyMemory::kFloats;
  static constexpr int kPanelFloats = Values::kFloats;
  static constexpr int kPanels = kStages * kStageFloats / kPanelFloats;
  static_assert(kPanels >= 3);
  static constexpr int kParts = kSlots / kPart;
  static constexpr int kScoreStride = kSlots + 4;
  static constexpr int kRingFloats = kStages * kStageFloats;
  static constexpr int kScoreFloats = kChunk * kScoreStride;
  static constexpr int kPairFloats = kChunk * kPairStride;
  static constexpr size_t kSharedBytes =
      sizeof(float) * (kRingFloats + kScoreFloats + kPairFloats + kBlocks * kSlots);

  const ChunkArgs& args;
  float* ring;
  float* scores;  // [kChunk, kSlots], then p, then p times the decay since the chunk's start
  float* pairs;   // [kChunk, kChunk] token by earlier token
  float* decays;  // [kBlocks, kSlots] of a block
  ChunkTile tile;
  int h;
  int64_t memory;  // slot and memory

  // In phase 2 the first two panels of the ring hold:
  __device__ float* aged_writes() const { return ring; }           // [kChunk, kPart]
  __device__ float* keeps() const { return ring + kPanelFloats; }  // [kChunk, kPart]

  // ---- Phase 1

  __device__ int slices() const { return (args.K + kSlice - 1) / kSlice; }
  __device__ float* stage(int i) const { return ring + i % kStages * kStageFloats; }

  // Item i is slice i % slices() of K with part i / slices() of M.
  __device__ void copy_slice(int i) const {
    const int part = i / slices();
    const int k = i % slices() * kSlice;
    if (part < kParts) {
      const int64_t row = static_cast<int64_t>(tile.first_row) * args.width;
      const int g = h / (args.H / args.G);
      float* to = stage(i);
      Queries::copy(to, args.qkvf + row + h * args.K + k, args.width, tile.count, args.K - k,
                    args.vectors);
      to += Queries::kFloats;
      if (part == 0) {
        Keys::copy(to, args.qkvf + row + args.k_column + g * args.K + k, args.width, tile.count,
                   args.K - k, args.vectors);
      }
      to += Keys::kFloats;
      KeyMemory::copy(to, memories() + static_cast<int64_t>(k) * kSlots + part * kPart, kSlots);
    }
    copy_commit();
  }

  __device__ const float* memories() const {
    return args.memories + memory * (args.padded_K + args.padded_V) * kSlots;
  }

  __device__ void activate_queries(int i) const {
    float* queries = stage(i);
    Queries::for_pieces([&](int token, int k) {
      float4& x = *reinterpret_cast<float4*>(queries + token * kQueryStride + k);
      x = {tf32(activate(x.x, args.relu)), tf32(activate(x.y, args.relu)),
           tf32(activate(x.z, args.relu)), tf32(activate(x.w, args.relu))};
    });
  }

  // Adds a slice to a 32 x 32 part: of pairs in warps 0 to 3, of scores in the others.
  __device__ __forceinline__ void multiply_slice(int i, int row, int column, bool of_scores,
                                                 float (&sums)[2][4][4]) const {
    const int lane = threadIdx.x % 32;
    const float* queries = stage(i) + row * kQueryStride;
    const float* keys = stage(i) + Queries::kFloats;
    const float* b = of_scores ? keys + Keys::kFloats + lane % 4 * kPartStride + column + lane / 4
                               : keys + (column + lane / 4) * kQueryStride + lane % 4;
    const int step_k = of_scores ? kPartStride : 1;
    const int step_column = of_scores ? 8 : 8 * kQueryStride;
#pragma unroll
    for (int k = 0; k < kSlice; k += 8) {
      float a[2][4];
      load_a(queries + k, kQueryStride, a[0]);
      load_a(queries + 16 * kQueryStride + k, kQueryStride, a[1]);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const float* at = b + k * step_k + n * step_column;
        const float b0 = at[0];
        const float b1 = at[4 * step_k];
        multiply_add(sums[0][n], a[0], b0, b1);
        multiply_add(sums[1][n], a[1], b0, b1);
      }
    }
  }

  __device__ void read_keys() const {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const bool of_scores = warp >= 4;
    const int row = warp % 2 * 32;
    const int column = warp / 2 % 2 * 32;
    const int count = slices();
    const int items = kParts * count;
    for (int i = 0; i < kStages - 1; ++i) copy_slice(i);
    for (int part = 0; part < kParts; ++part) {
      const bool wanted = of_scores || (part == 0 && column <= row);
      float sums[2][4][4] = {};
      for (int i = part * count; i < (part + 1) * count; ++i) {
        copy_wait<kStages - 2>();
        activate_queries(i);
        __syncthreads();
        if (i + kStages - 1 < items) {
          copy_slice(i + kStages - 1);
        } else {
          copy_commit();
        }
        if (wanted) multiply_slice(i, row, column, of_scores, sums);
      }
      if (!of_scores && part > 0) continue;
      float* to = (of_scores ? scores + part * kPart : pairs) + column + lane % 4 * 2;
      const int stride = of_scores ? kScoreStride : kPairStride;
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          float* at = to + (row + m * 16 + lane / 4) * stride + n * 8;
          *reinterpret_cast<float2*>(at) = make_float2(sums[m][n][0], sums[m][n][1]);
          *reinterpret_cast<float2*>(at + 8 * stride) = make_float2(sums[m][n][2], sums[m][n][3]);
        }
      }
    }
    __syncthreads();
  }

  // ---- Phase 2, a part of M at a time. Thread by thread: slot `own_slot` of the tokens of one
  // block, whose gates it keeps in registers.

  struct Gates {
    float keep[kBlock];
    float write[kBlock];
  };
  __device__ int own_slot() const { return threadIdx.x % kPart; }
  __device__ int own_block() const { return threadIdx.x / kPart; }

  __device__ void load_gates(int part, Gates& gates) const {
    const int m = own_slot();
    const int row = own_block() * kBlock;
    const int64_t from = (memory * kChunk + row) * kSlots + part * kPart + m;
#pragma unroll
    for (int t = 0; t < kBlock; ++t) {
      gates.keep[t] = args.keep[from + t * kSlots];
      gates.write[t] = args.write[from + t * kSlots];
    }
    float decay = 1;
#pragma unroll
    for (int t = kBlock - 1; t >= 0; --t) {
      keeps()[(row + t) * kPartStride + m] = gates.keep[t];
      aged_writes()[(row + t) * kPartStride + m] = tf32(gates.write[t] * decay);
      decay *= gates.keep[t];
    }
    decays[own_block() * kSlots + part * kPart + m] = decay;
  }

  // Scores from the memory before the chunk to the memory before the token's block.
  __device__ void add_earlier_blocks(int part) const {
    const int lane = threadIdx.x % 32;
    const int block = threadIdx.x / 64;
    const int column = threadIdx.x / 32 % 2 * 32;
    float* at =
        scores + (block * kBlock + lane / 4) * kScoreStride + part * kPart + column + lane % 4 * 2;
    float sums[4][4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[n][j] = at[j / 2 * 8 * kScoreStride + n * 8 + j % 2];
    }
    for (int earlier = 0; earlier < block; ++earlier) {
      const float* decay = decays + earlier * kSlots + part * kPart + column + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[n][j] *= decay[n * 8 + j % 2];
      }
#pragma unroll
      for (int k = 0; k < kBlock; k += 8) {
        float a[4];
        load_a(pairs + block * kBlock * kPairStride + earlier * kBlock + k, kPairStride, a);
        round_all(a);
        const float* b =
            aged_writes() + (earlier * kBlock + k + lane % 4) * kPartStride + column + lane / 4;
#pragma unroll
        for (int n = 0; n < 4; ++n) multiply_add(sums[n], a, b[n * 8], b[4 * kPartStride + n * 8]);
      }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) at[j / 2 * 8 * kScoreStride + n * 8 + j % 2] = sums[n][j];
    }
  }

  // And on to the memory after the token.
  __device__ __forceinline__ void add_own_block(int part, const Gates& gates) const {
    const int row = own_block() * kBlock;
    float* at = scores + row * kScoreStride + part * kPart + own_slot();
    const float* pair_row = pairs + row * kPairStride + row;
    float written[kBlock];
    float decay = 1;
#pragma unroll
    for (int t = 0; t < kBlock; ++t) {
      decay *= gates.keep[t];
      float sum = at[t * kScoreStride] * decay;
#pragma unroll
      for (int i = 0; i < t; ++i) written[i] *= gates.keep[t];
      written[t] = gates.write[t];
#pragma unroll
      for (int i = 0; i <= t; i += 4) {
        const float4 pair = *reinterpret_cast<const float4*>(pair_row + t * kPairStride + i);
        sum += pair.x * written[i];
        if (i + 1 <= t) sum += pair.y * written[i + 1];
        if (i + 2 <= t) sum += pair.z * written[i + 2];
        if (i + 3 <= t) sum += pair.w * written[i + 3];
      }
      at[t * kScoreStride] = sum;
    }
  }

  __device__ void softmax() const {
    const int lane = threadIdx.x % 32;
    for (int t = threadIdx.x / 32; t < kChunk; t += kThreads / 32) {
      float* row = scores + t * kScoreStride;
      float x[kSlots / 32];
      float highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kSlots / 32; ++j) {
        const int m = lane + 32 * j;
        x[j] = m < args.M ? row[m] : -INFINITY;
        highest = fmaxf(highest, x[j]);
      }
      highest = warp_max(highest);
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kSlots / 32; ++j) {
        x[j] = __expf(x[j] - highest);
        sum += x[j];
      }
      const float scale = 1 / warp_sum(sum);
#pragma unroll
      for (int j = 0; j < kSlots / 32; ++j) row[lane + 32 * j] = x[j] * scale;
    }
    for (int i = threadIdx.x; i < kPairFloats; i += kThreads) pairs[i] = 0;
  }

  // pairs[t][i] += sum_m p_t s_i decay for tokens of one block. A lane has one i and a quarter of
  // the slots.
  __device__ void weigh_own_block(int part) const {
    const int lane = threadIdx.x % 32;
    const int row = threadIdx.x / 64 * kBlock;
    const int first = threadIdx.x / 32 % 2 * 8;
    const int i = first + lane / 4;
    const int column = lane % 4 * 4;
    const float* from = args.write + (memory * kChunk + row + i) * kSlots + part * kPart + column;
    float written[16];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 write = *reinterpret_cast<const float4*>(from + j * 16);
      written[j * 4] = write.x;
      written[j * 4 + 1] = write.y;
      written[j * 4 + 2] = write.z;
      written[j * 4 + 3] = write.w;
    }
    for (int t = first; t < kBlock; ++t) {
      const float* keep = keeps() + (row + t) * kPartStride + column;
      const float* p = scores + (row + t) * kScoreStride + part * kPart + column;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 k = *reinterpret_cast<const float4*>(keep + j * 16);
        const float4 x = *reinterpret_cast<const float4*>(p + j * 16);
        if (t > i) {
          written[j * 4] *= k.x;
          written[j * 4 + 1] *= k.y;
          written[j * 4 + 2] *= k.z;
          written[j * 4 + 3] *= k.w;
        }
        sum += x.x * written[j * 4] + x.y * written[j * 4 + 1] + x.z * written[j * 4 + 2] +
               x.w * written[j * 4 + 3];
      }
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (lane % 4 == 0 && t >= i) pairs[(row + t) * kPairStride + row + i] += sum;
    }
  }

  // p times the decay since the start of the token's block.
  __device__ __forceinline__ void decay_to_block(int part, const Gates& gates) const {
    float* at = scores + own_block() * kBlock * kScoreStride + part * kPart + own_slot();
    float decay = 1;
#pragma unroll
    for (int t = 0; t < kBlock; ++t) {
      decay *= gates.keep[t];
      at[t * kScoreStride] *= decay;
    }
  }

  // And since the start of the chunk.
  __device__ void decay_to_chunk(int part) const {
    const int m = part * kPart + own_slot();
    float decay = 1;
    for (int block = 0; block < own_block(); ++block) decay *= decays[block * kSlots + m];
    float* at = scores + own_block() * kBlock * kScoreStride + m;
#pragma unroll
    for (int t = 0; t < kBlock; ++t) at[t * kScoreStride] = tf32(at[t * kScoreStride] * decay);
  }

  // pairs of tokens of different blocks; a warp has one pair of blocks.
  __device__ void weigh_earlier_blocks(int part) const {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (warp >= kBlocks * (kBlocks - 1) / 2) return;
    const int block = warp < 1 ? 1 : warp < 3 ? 2 : 3;
    const int earlier = warp - block * (block - 1) / 2;
    const float* p = scores + block * kBlock * kScoreStride + part * kPart;
    const float* b = aged_writes() + (earlier * kBlock + lane / 4) * kPartStride + lane % 4;
    const float* decay_at = decays + part * kPart + lane % 4;
    float sums[2][4] = {};
#pragma unroll
    for (int m = 0; m < kPart; m += 8) {
      float a[4];
      load_a(p + m, kScoreStride, a);
      float decay[2] = {1, 1};
      for (int between = earlier + 1; between < block; ++between) {
        decay[0] *= decay_at[between * kSlots + m];
        decay[1] *= decay_at[between * kSlots + m + 4];
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] = tf32(a[j] * decay[j / 2]);
      multiply_add(sums[0], a, b[m], b[m + 4]);
      multiply_add(sums[1], a, b[8 * kPartStride + m], b[8 * kPartStride + m + 4]);
    }
    float* to = pairs + (block * kBlock + lane / 4) * kPairStride + earlier * kBlock + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) to[j / 2 * 8 * kPairStride + n * 8 + j % 2] += sums[n][j];
    }
  }

  __device__ void weigh() const {
    Gates gates;
    for (int part = 0; part < kParts; ++part) {
      if (part > 0) __syncthreads();
      load_gates(part, gates);
      __syncthreads();
      add_earlier_blocks(part);
      __syncthreads();
      add_own_block(part, gates);
    }
    __syncthreads();
    softmax();
    for (int part = 0; part < kParts; ++part) {
      __syncthreads();
      if (kParts > 1) {
        load_gates(part, gates);
        __syncthreads();
      }
      weigh_own_block(part);
      __syncthreads();
      decay_to_block(part, gates);
      __syncthreads();
      weigh_earlier_blocks(part);
      __syncthreads();
      decay_to_chunk(part);
    }
    __syncthreads();
  }

  // ---- Phase 3. For every part of V the panels are the parts of hv, by slots, then v.

  static constexpr int kPanelsOfPart = kParts + 1;
  static constexpr int kUsedPanels = 2;  // by phase 2
  __device__ int panels() const { return (args.V + kPart - 1) / kPart * kPanelsOfPart; }
  __device__ float* panel(int i) const { return ring + (i + kUsedPanels) % kPanels * kPanelFloats; }

  __device__ void copy_panel(int i) const {
    if (i < panels()) {
      const int v = i / kPanelsOfPart * kPart;
      const int part = i % kPanelsOfPart;
      if (part < kParts) {
        ValueMemory::copy(
            panel(i), memories() + static_cast<int64_t>(args.padded_K + v) * kSlots + part * kPart,
            kSlots);
      } else {
        const int g = h / (args.H / args.G);
        Values::copy(panel(i),
                     args.qkvf + static_cast<int64_t>(tile.first_row) * args.width + args.v_column +
                         g * args.V + v,
                     args.width, tile.count, args.V - v, args.vectors);
      }
    }
    copy_commit();
  }

  __device__ void store_outputs(int v, int row, int column, const float (&sums)[4][4]) const {
    const int lane = threadIdx.x % 32;
    const int64_t row_stride = static_cast<int64_t>(args.H) * args.V;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = row + half * 8 + lane / 4;
      if (t >= tile.count) break;
      float* to = args.out + (tile.first_row + t) * row_stride + static_cast<int64_t>(h) * args.V;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const int at = v + column + n * 8 + lane % 4 * 2;
        const float2 y = {fast_silu(sums[n][half * 2]), fast_silu(sums[n][half * 2 + 1])};
        if (args.vectors && at < args.V) {
          *reinterpret_cast<float2*>(to + at) = y;
        } else {
          if (at < args.V) to[at] = y.x;
          if (at + 1 < args.V) to[at + 1] = y.y;
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
    float weights[kChunk / 8][4];
#pragma unroll
    for (int k = 0; k < kChunk / 8; ++k) {
      if (kParts == 1) load_a(scores + row * kScoreStride + k * 8, kScoreStride, p[k]);
      load_a(pairs + row * kPairStride + k * 8, kPairStride, weights[k]);
      round_all(weights[k]);
    }
    float sums[4][4];
    for (int i = 0; i < panels(); ++i) {
      copy_wait<kPanels - 2>();
      __syncthreads();
      copy_panel(i + kPanels - 1);
      const int part = i % kPanelsOfPart;
      if (part < kParts) {
        if (part == 0) {
#pragma unroll
          for (int n = 0; n < 4; ++n) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0;
        }
        const float* b = panel(i) + (column + lane / 4) * kValueMemoryStride + lane % 4;
#pragma unroll
        for (int k = 0; k < kPart / 8; ++k) {
          if (kParts > 1) {
            load_a(scores + row * kScoreStride + part * kPart + k * 8, kScoreStride, p[k]);
          }
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const float* at = b + n * 8 * kValueMemoryStride + k * 8;
            multiply_add(sums[n], p[k], at[0], at[4]);
          }
        }
        continue;
      }
      const float* b = panel(i) + lane % 4 * kPartStride + column + lane / 4;
#pragma unroll
      for (int k = 0; k < kChunk / 8; ++k) {
        if (k * 8 >= row + kBlock) break;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float* at = b + k * 8 * kPartStride + n * 8;
          multiply_add(sums[n], weights[k], at[0], at[4 * kPartStride]);
        }
      }
      store_outputs(i / kPanelsOfPart * kPart, row, column, sums);
    }
  }

  __device__ void run() const {
    read_keys();
    // Panels that phase 2 leaves alone are copied meanwhile.
    for (int i = 0; i < kPanels - kUsedPanels; ++i) copy_panel(i);
    weigh();
    copy_panel(kPanels - kUsedPanels);
    read_values();
  }
};

template <int kSlots, int kStages>
__global__ void __launch_bounds__(kThreads, kSlots == 64 && kStages == 2 ? 2 : 1)
    chunk_outputs(const __grid_constant__ ChunkArgs args) {
  extern __shared__ float4 output_shared[];
  using Kernel = OutputKernel<kSlots, kStages>;
  grid_release();
  grid_wait();
  float* ring = reinterpret_cast<float*>(output_shared);
  const ChunkTile tile = args.step.tiles[blockIdx.y];
  const int h = blockIdx.x;
  const Kernel kernel = {
      .args = args,
      .ring = ring,
      .scores = ring + Kernel::kRingFloats,
      .pairs = ring + Kernel::kRingFloats + Kernel::kScoreFloats,
      .decays = ring + Kernel::kRingFloats + Kernel::kScoreFloats + Kernel::kPairFloats,
      .tile = tile,
      .h = h,
      .memory = static_cast<int64_t>(tile.slot) * args.G + h / (args.H / args.G)};
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
  switch (args.padded_M) {
    case 64:
      // Few blocks get a deep ring each, many share the multiprocessors.
      if (args.H * args.step.tile_count <= how.multiprocessors) return queue<64, 4>(how, args);
      return queue<64, 2>(how, args);
    case 128:
      return queue<128, 2>(how, args);
    default:
      return queue<256, 2>(how, args);
  }
}

}  // namespace gsa::cuda
