// How much every token reads of the memories before its chunk and of every token in it.
#pragma once

#include "kernels/cuda/mix_chunk_kernels.cuh"
#include "kernels/cuda/mix_chunk_tiles.cuh"

namespace gsa::cuda {

// Done by kThreads threads for one chunk of one query head, a part of M at a time.
// In:  scores[t][m] = q_t . hk before the chunk, pairs[t][i] = q_t . k_i for i <= t
// Out: scores[t][m] = p_t times the decay from the start of the block up to token t
//      pairs[t][i] = the weight of v_i in the output of t
//
// Within a block of tokens the decay from i to t is a quotient of decays since the block's start.
// Where no slot loses more than kMild over a block, the quotients are taken apart, so that tensor
// cores do everything: writes are divided by their decay, which is far from the limits of float32.
// Else the decays are running products, token by token.
template <int kSlots>
struct ChunkWeights {
  static constexpr int kThreads = 256;
  static constexpr int kPart = 64;
  static constexpr int kParts = kSlots / kPart;
  static constexpr int kScoreStride = kSlots + 4;
  static constexpr int kPairStride = kChunk + 4;
  static constexpr int kGateStride = kPart + 8;
  static constexpr float kMild = 1e-12f;
  static constexpr int kGateFloats = kChunk * kGateStride;

  int M;
  const float* keep;   // [kChunk, kSlots] in global memory
  const float* write;  // the same
  // In shared memory, rows kScoreStride, kPairStride, kGateStride and kSlots floats apart:
  float* scores;  // [kChunk, kSlots]
  float* pairs;   // [kChunk, kChunk]
  float* keeps;   // [kChunk, kPart] scratch: keep; if mild, the decay since the block's start
  float* writes;  // [kChunk, kPart] scratch, operands: write at the end of its block; if mild,
                  // divided by the decay since the block's start
  float* decays;  // [kBlocks, kSlots] product of keep over a block

  // The gates of one slot over one block, which a thread holds in registers.
  struct Gates {
    float keep[kBlock];
    float write[kBlock];
  };
  __device__ int own_slot() const { return threadIdx.x % kPart; }
  __device__ int own_block() const { return threadIdx.x / kPart; }

  // Returns whether they are mild.
  __device__ bool load_gates(int part, Gates& gates) const {
    const int m = own_slot();
    const int row = own_block() * kBlock;
    const int from = row * kSlots + part * kPart + m;
#pragma unroll
    for (int t = 0; t < kBlock; ++t) {
      gates.keep[t] = keep[from + t * kSlots];
      gates.write[t] = write[from + t * kSlots];
    }
    float decay = 1;
#pragma unroll
    for (int t = 0; t < kBlock; ++t) decay *= gates.keep[t];
    decays[own_block() * kSlots + part * kPart + m] = decay;
    const bool mild = __syncthreads_and(decay > kMild);
    float* keep_at = keeps + row * kGateStride + m;
    float* write_at = writes + row * kGateStride + m;
    decay = 1;
    if (mild) {
#pragma unroll
      for (int t = 0; t < kBlock; ++t) {
        decay *= gates.keep[t];
        keep_at[t * kGateStride] = decay;
        write_at[t * kGateStride] = tf32(__fdividef(gates.write[t], decay));
      }
    } else {
#pragma unroll
      for (int t = kBlock - 1; t >= 0; --t) {
        keep_at[t * kGateStride] = gates.keep[t];
        write_at[t * kGateStride] = tf32(gates.write[t] * decay);
        decay *= gates.keep[t];
      }
    }
    __syncthreads();
    return mild;
  }

  // The part of `pairs` where tokens of `block` meet eight tokens from `earlier` on.
  __device__ void load_pairs(int block, int earlier, float (&a)[4]) const {
    load_a(pairs + block * kBlock * kPairStride + earlier, kPairStride, a);
    round_all(a);
  }

  // Scores from the memory before the chunk to the memory before the token's block; if mild, to
  // the memory after the token.
  template <bool kIsMild>
  __device__ void add_blocks(int part) const {
    const int lane = threadIdx.x % 32;
    const int block = threadIdx.x / 64;
    const int column = threadIdx.x / 32 % 2 * 32;
    const int row = block * kBlock + lane / 4;
    float* at = scores + row * kScoreStride + part * kPart + column + lane % 4 * 2;
    const float* b = writes + lane % 4 * kGateStride + column + lane / 4;
    float sums[4][4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[n][j] = at[j / 2 * 8 * kScoreStride + n * 8 + j % 2];
    }
    auto decay_over = [&](int earlier) {
      const float* decay = decays + earlier * kSlots + part * kPart + column + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[n][j] *= decay[n * 8 + j % 2];
      }
    };
    auto add = [&](const float(&a)[4], int token) {
      const float* from = b + token * kGateStride;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        multiply_add(sums[n], a, from[n * 8], from[4 * kGateStride + n * 8]);
      }
    };
    for (int earlier = 0; earlier < block; ++earlier) {
      if (!kIsMild) decay_over(earlier);
#pragma unroll
      for (int k = 0; k < kBlock; k += 8) {
        float a[4];
        load_pairs(block, earlier * kBlock + k, a);
        add(a, earlier * kBlock + k);
      }
      if (kIsMild) decay_over(earlier);
    }
    if (kIsMild) {
#pragma unroll
      for (int k = 0; k < kBlock; k += 8) {
        float a[4];
        load_pairs(block, block * kBlock + k, a);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (k + lane % 4 + j / 2 * 4 > lane / 4 + j % 2 * 8) a[j] = 0;
        }
        add(a, block * kBlock + k);
      }
      const float* decay = keeps + row * kGateStride + column + lane % 4 * 2;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[n][j] *= decay[j / 2 * 8 * kGateStride + n * 8 + j % 2];
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
    constexpr int kWarps = kThreads / 32;
    const int lane = threadIdx.x % 32;
    // Several rows at once where registers suffice.
#pragma unroll(kSlots == 64 ? kChunk / kWarps : 1)
    for (int i = 0; i < kChunk / kWarps; ++i) {
      float* row = scores + (threadIdx.x / 32 + i * kWarps) * kScoreStride + lane;
      float x[kSlots / 32];
      float highest = -INFINITY;
#pragma unroll
      for (int j = 0; j < kSlots / 32; ++j) {
        x[j] = lane + 32 * j < M ? row[32 * j] : -INFINITY;
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
      for (int j = 0; j < kSlots / 32; ++j) row[32 * j] = x[j] * scale;
    }
    for (int i = threadIdx.x; i < kChunk * kPairStride; i += kThreads) pairs[i] = 0;
  }

  // pairs[t][i] += sum_m p_t s_i decay for tokens of one block. A lane has one i and a quarter of
  // the slots.
  __device__ void weigh_own_block(int part) const {
    const int lane = threadIdx.x % 32;
    const int row = threadIdx.x / 64 * kBlock;
    const int first = threadIdx.x / 32 % 2 * 8;
    const int i = first + lane / 4;
    const int column = lane % 4 * 4;
    const float* from = write + (row + i) * kSlots + part * kPart + column;
    float written[16];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float4 write = *reinterpret_cast<const float4*>(from + j * 16);
      written[j * 4] = write.x;
      written[j * 4 + 1] = write.y;
      written[j * 4 + 2] = write.z;
      written[j * 4 + 3] = write.w;
    }
#pragma unroll 4
    for (int t = first; t < kBlock; ++t) {
      const float* keep = keeps + (row + t) * kGateStride + column;
      const float* p = scores + (row + t) * kScoreStride + part * kPart + column;
      float sum[4];
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
        sum[j] = x.x * written[j * 4] + x.y * written[j * 4 + 1] + x.z * written[j * 4 + 2] +
                 x.w * written[j * 4 + 3];
      }
      float all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
      all += __shfl_xor_sync(kAllLanes, all, 1);
      all += __shfl_xor_sync(kAllLanes, all, 2);
      if (lane % 4 == 0 && t >= i) pairs[(row + t) * kPairStride + row + i] += all;
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

  // pairs of tokens of different blocks; if mild, of all. A warp has one pair of blocks at a time.
  template <bool kIsMild>
  __device__ void weigh_blocks(int part) const {
    constexpr int kOwn = kIsMild ? 1 : 0;
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x / 32; i < kBlocks * (kBlocks - 1 + 2 * kOwn) / 2; i += kThreads / 32) {
      // Pair i of (1, 0) (2, 0) (2, 1) (3, 0) .., or if mild of (0, 0) (1, 0) (1, 1) (2, 0) ..
      const int distance = i < 1 ? 0 : i < 3 ? 1 : i < 6 ? 2 : 3;
      const int block = distance + 1 - kOwn;
      const int earlier = i - distance * (distance + 1) / 2;
      const float* p = scores + block * kBlock * kScoreStride + part * kPart;
      const float* from = writes + earlier * kBlock * kGateStride;
      const float* decay_at = decays + part * kPart + lane % 4;
      float sums[2][4] = {};
#pragma unroll
      for (int m = 0; m < kPart; m += 16) {
        float b[2][4];
        load_b(from + m, kGateStride, b[0]);
        load_b(from + 8 * kGateStride + m, kGateStride, b[1]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int at = m + half * 8;
          float a[4];
          load_a(p + at, kScoreStride, a);
          float decay[2] = {1, 1};
#pragma unroll
          for (int between = 0; between < kBlocks - 1; ++between) {
            if (between < earlier + 1 - kOwn || between >= block) continue;
            decay[0] *= decay_at[between * kSlots + at];
            decay[1] *= decay_at[between * kSlots + at + 4];
          }
#pragma unroll
          for (int j = 0; j < 4; ++j) a[j] = tf32(a[j] * decay[j / 2]);
          multiply_add(sums[0], a, b[0][half * 2], b[0][half * 2 + 1]);
          multiply_add(sums[1], a, b[1][half * 2], b[1][half * 2 + 1]);
        }
      }
      const int row = lane / 4;
      const int column = lane % 4 * 2;
      float* to = pairs + (block * kBlock + row) * kPairStride + earlier * kBlock + column;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          if (block == earlier && n * 8 + column + j % 2 > row + j / 2 * 8) continue;
          to[j / 2 * 8 * kPairStride + n * 8 + j % 2] += sums[n][j];
        }
      }
    }
  }

  __device__ void run() const {
    Gates gates;
    bool mild = false;
    for (int part = 0; part < kParts; ++part) {
      mild = load_gates(part, gates);
      if (mild) {
        add_blocks<true>(part);
      } else {
        add_blocks<false>(part);
        __syncthreads();
        add_own_block(part, gates);
      }
      __syncthreads();
    }
    softmax();
    __syncthreads();
    for (int part = 0; part < kParts; ++part) {
      if (kParts > 1) mild = load_gates(part, gates);
      if (!mild) {
        weigh_own_block(part);
        __syncthreads();
      }
      decay_to_block(part, gates);
      __syncthreads();
      if (mild) {
        weigh_blocks<true>(part);
      } else {
        weigh_blocks<false>(part);
      }
      __syncthreads();
    }
  }

  // What the tokens of `block` read of eight slots of the memory before the chunk, as an operand.
  __device__ void load_reads(int block, int slot, float (&a)[4]) const {
    load_a(scores + block * kBlock * kScoreStride + slot, kScoreStride, a);
    const float* decay = decays + slot + threadIdx.x % 4;
    for (int earlier = 0; earlier < block; ++earlier) {
#pragma unroll
      for (int j = 0; j < 4; ++j) a[j] *= decay[earlier * kSlots + j / 2 * 4];
    }
    round_all(a);
  }
};

}  // namespace gsa::cuda
