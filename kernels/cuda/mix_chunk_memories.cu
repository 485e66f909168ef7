// The memories of every segment from chunk to chunk.
#include "kernels/cuda/mix_chunk_kernels.cuh"
#include "kernels/cuda/mix_chunk_tiles.cuh"

namespace gsa::cuda {
namespace {

// Warps that prepare a chunk, and warps that add the one before it.
constexpr int kLoadThreads = 128;
constexpr int kAddWarps = 4;
constexpr int kThreads = kLoadThreads + 32 * kAddWarps;

// A block has kRows rows of one memory, all slots: rows of hk, or columns of hv, as columns of k or
// v are what both are written from. It stays in registers, as floats, over the whole segment, while
// the chunks pass through a ring of kStages in shared memory.
template <int kRows, int kSlots, int kStages>
struct MemoryKernel {
  using Rows = Tile<kLoadThreads, kChunk, kRows, kRows + 8>;      // of k or v, a token a row
  using Writes = Tile<kLoadThreads, kSlots, kChunk, kChunk + 4>;  // aged writes, a slot a row
  static constexpr int kDecayFloats = kBlocks * kSlots;
  static constexpr int kStageFloats = Rows::kFloats + Writes::kFloats + kDecayFloats;
  static constexpr size_t kSharedBytes = sizeof(float) * kStages * kStageFloats;

  static constexpr int kRowWarps = kRows / 16;
  static constexpr int kWarpSlots = kSlots * kRowWarps / kAddWarps;
  static constexpr int kParts = kWarpSlots / 8;

  const ChunkArgs& args;
  float* shared;
  bool values;    // of v and hv, else of k and hk
  int first_row;  // of the memory
  int rows;       // how many of kRows there are
  int g;
  Segment segment;
  int slot;  // of the segment's first chunk

  float sums[kParts][4];

  __device__ float* stage(unsigned chunk) const { return shared + chunk % kStages * kStageFloats; }
  __device__ int count(int chunk) const { return min(kChunk, segment.count - chunk * kChunk); }

  // ---- Warps that prepare

  __device__ float* tokens(int chunk) const {
    const int column = values ? args.v_column + g * args.V : args.k_column + g * args.K;
    return args.qkvf + (segment.first + static_cast<int64_t>(chunk) * kChunk) * args.width +
           column + first_row;
  }

  __device__ void copy(int chunk) const {
    if (chunk * kChunk < segment.count) {
      float* to = stage(chunk);
      const int64_t at = static_cast<int64_t>(slot + chunk) * args.G + g;
      Rows::copy(to, tokens(chunk), args.width, count(chunk), rows, args.vectors);
      to += Rows::kFloats;
      Writes::template copy<kChunk>(to, args.aged_write + at * kSlots * kChunk);
      to += Writes::kFloats;
      const float* decays = args.block_decay + at * kDecayFloats;
      for (int i = threadIdx.x * 4; i < kDecayFloats; i += kLoadThreads * 4) {
        copy_async(to + i, decays + i);
      }
    }
    copy_commit();
  }

  // Activates what this thread has copied, here and in the step's projections.
  __device__ void activate_rows(int chunk) const {
    copy_wait<kStages - 2>();
    if (chunk * kChunk >= segment.count) return;
    Rows::activate(stage(chunk), !values && args.relu);
    Rows::store(stage(chunk), tokens(chunk), args.width, count(chunk), rows, args.vectors);
  }

  // ---- Warps that add

  __device__ int warp() const { return (threadIdx.x - kLoadThreads) / 32; }
  __device__ int warp_row() const { return warp() % kRowWarps * 16; }
  __device__ int warp_slot() const { return warp() / kRowWarps * kWarpSlots; }

  // Calls visit(row, slot, sum) for the pairs of neighbouring slots that this thread has.
  template <typename Visit>
  __device__ __forceinline__ void for_pairs(Visit visit) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        visit(warp_row() + lane / 4 + half * 8, warp_slot() + part * 8 + lane % 4 * 2,
              &sums[part][half * 2]);
      }
    }
  }

  template <typename T>
  __device__ T* state() const {
    const int64_t memory = int64_t{segment.state} * args.G + g;
    return values ? static_cast<T*>(args.hv) + memory * args.M * args.V + first_row
                  : static_cast<T*>(args.hk) + (memory * args.K + first_row) * args.M;
  }
  __device__ int64_t state_offset(int row, int m) const {
    return values ? static_cast<int64_t>(m) * args.V + row : static_cast<int64_t>(row) * args.M + m;
  }

  template <typename T>
  __device__ __forceinline__ void load_state() {
    const T* from = state<T>();
    for_pairs([&](int row, int m, float* sum) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        sum[j] = row < rows && m + j < args.M ? to_float(from[state_offset(row, m + j)]) : 0.0f;
      }
    });
  }

  template <typename T>
  __device__ __forceinline__ void store_state() {
    T* to = state<T>();
    for_pairs([&](int row, int m, float* sum) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (row < rows && m + j < args.M) to[state_offset(row, m + j)] = T(sum[j]);
      }
    });
  }

  // The memory before a chunk, for the outputs.
  __device__ void store_memory(int chunk) {
    const int lane = threadIdx.x % 32;
    const int64_t at = static_cast<int64_t>(slot + chunk) * args.G + g;
    const int row = (values ? args.padded_K : 0) + first_row + warp_row() + lane / 4;
    float* to = args.memories + (at * (args.padded_K + args.padded_V) + row) * kSlots +
                warp_slot() + lane % 4 * 2;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float(&x)[4] = sums[part];
      *reinterpret_cast<float2*>(to + part * 8) = {tf32(x[0]), tf32(x[1])};
      *reinterpret_cast<float2*>(to + 8 * kSlots + part * 8) = {tf32(x[2]), tf32(x[3])};
    }
  }

  __device__ void add_chunk(int chunk) {
    const int lane = threadIdx.x % 32;
    const float* k = stage(chunk) + warp_row();
    const float* writes = stage(chunk) + Rows::kFloats + warp_slot() * Writes::kStride;
    const float* decays =
        stage(chunk) + Rows::kFloats + Writes::kFloats + warp_slot() + lane % 4 * 2;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      float a[2][4];
      load_a_transposed(k + block * kBlock * Rows::kStride, Rows::kStride, a[0]);
      load_a_transposed(k + (block * kBlock + 8) * Rows::kStride, Rows::kStride, a[1]);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float2 decay = *reinterpret_cast<const float2*>(decays + block * kSlots + part * 8);
        sums[part][0] *= decay.x;
        sums[part][1] *= decay.y;
        sums[part][2] *= decay.x;
        sums[part][3] *= decay.y;
        float b[4];
        load_b(writes + part * 8 * Writes::kStride + block * kBlock, Writes::kStride, b);
        multiply_add(sums[part], a[0], b[0], b[1]);
        multiply_add(sums[part], a[1], b[2], b[3]);
      }
    }
  }

  __device__ void run() {
    const bool loads = threadIdx.x < kLoadThreads;
    if (loads) {
      for (int chunk = 0; chunk < kStages - 1; ++chunk) copy(chunk);
      activate_rows(0);
    } else {
      switch (args.state_type) {
        case DType::kF32:
          load_state<float>();
          break;
        case DType::kF16:
          load_state<__half>();
          break;
        default:
          load_state<__nv_bfloat16>();
      }
    }
    for (int chunk = 0; chunk * kChunk < segment.count; ++chunk) {
      __syncthreads();  // this chunk is ready, and the stage of the one before it is free
      if (loads) {
        copy(chunk + kStages - 1);
        activate_rows(chunk + 1);
      } else {
        store_memory(chunk);
        add_chunk(chunk);
      }
    }
    grid_release();
    if (loads) return;
    switch (args.state_type) {
      case DType::kF32:
        return store_state<float>();
      case DType::kF16:
        return store_state<__half>();
      default:
        return store_state<__nv_bfloat16>();
    }
  }
};

template <int kRows, int kSlots, int kStages>
__global__ void __launch_bounds__(kThreads) chunk_memories(const __grid_constant__ ChunkArgs args) {
  extern __shared__ float4 memory_stages[];
  grid_wait();
  const int k_tiles = args.padded_K / kRows;
  const int tile = blockIdx.x;
  const bool values = tile >= k_tiles;
  const int first_row = (values ? tile - k_tiles : tile) * kRows;
  const int segment = blockIdx.z;
  MemoryKernel<kRows, kSlots, kStages> kernel = {
      .args = args,
      .shared = reinterpret_cast<float*>(memory_stages),
      .values = values,
      .first_row = first_row,
      .rows = min(kRows, (values ? args.V : args.K) - first_row),
      .g = static_cast<int>(blockIdx.y),
      .segment = args.step.segments[segment],
      .slot = first_chunk_slot(args.step.segments[segment], segment)};
  kernel.run();
}

template <int kRows, int kSlots, int kStages>
void queue(const Launch& how, const ChunkArgs& args) {
  const size_t bytes = MemoryKernel<kRows, kSlots, kStages>::kSharedBytes;
  allow_shared_memory(chunk_memories<kRows, kSlots, kStages>, bytes);
  const Grid grid = {
      .blocks = dim3((args.padded_K + args.padded_V) / kRows, args.G, args.step.segment_count),
      .threads = dim3(kThreads),
      .shared_bytes = bytes};
  launch(how, grid, chunk_memories<kRows, kSlots, kStages>, args);
}

template <int kRows, int kSlots, int kStages>
bool fits(const ChunkArgs& args) {
  return MemoryKernel<kRows, kSlots, kStages>::kSharedBytes <= args.shared_limit;
}

// Few memories are cut finely, a few more get a deep ring each, many share the multiprocessors.
void queue_64_slots(const Launch& how, const ChunkArgs& args) {
  const int blocks = (args.padded_K + args.padded_V) / 32 * args.G * args.step.segment_count;
  if (blocks < how.multiprocessors * 3 / 4) return queue<16, 64, 4>(how, args);
  if (blocks <= how.multiprocessors && fits<32, 64, 4>(args)) return queue<32, 64, 4>(how, args);
  queue<32, 64, 3>(how, args);
}

}  // namespace

void queue_chunk_memories(const Launch& how, const ChunkArgs& args) {
  if (args.padded_M == 64) return queue_64_slots(how, args);
  if (args.padded_M == 128) {
    return fits<32, 128, 4>(args) ? queue<32, 128, 4>(how, args) : queue<16, 128, 3>(how, args);
  }
  return fits<32, 256, 2>(args) ? queue<32, 256, 2>(how, args) : queue<16, 256, 2>(how, args);
}

}  // namespace gsa::cuda
