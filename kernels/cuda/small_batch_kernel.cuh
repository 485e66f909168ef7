// The kernel of products with a small batch.
//
// A cluster of blocks has some rows, and each of its blocks a part of the columns, so that a block
// reads little more activations than weights. A warp has some pairs of rows, whose sums stay in
// its registers to the end, and a slice of its block's columns. Then a block adds up its slices,
// and the blocks of the cluster add up each other's, each for a part of the outputs.
#pragma once

#include <cooperative_groups.h>

#include "kernels/cuda/matvec_sums.cuh"
#include "kernels/cuda/small_batch_tiles.cuh"
#include "kernels/cuda/stream_exchange.cuh"

namespace gsa::cuda::batch {

constexpr int kMostSplits = 8;

struct Args {
  const __nv_bfloat16* x;
  const unsigned char* weight;
  void* y;
  int tokens, rows, cols, y_stride;
  int across;             // tiles of a row
  int weight_rows, down;  // rows, and rows of tiles, of gates and ups together
  int pairs;              // of all rows
  int block_pairs;        // at most, of a cluster
  int clusters;           // of these rows; those behind them have the rows apart
  int teams;       // of warps with the same pairs; the other factor of them is the number of slices
  int slices;      // of the columns of a block
  int most_tiles;  // columns of them that a block has
  int pitch;       // of activations in shared memory
  bool gated, accumulate;
  const __nv_bfloat16* apart;
  int apart_rows, apart_pairs, apart_block_pairs;
};

// Of the sums of groups in shared memory.
template <DType kType, int kTiles>
__host__ __device__ constexpr size_t group_bytes(int tiles) {
  return kType == DType::kQ4 ? GroupSums<kTiles>::bytes(tiles * SmallTile::kGroups) : 0;
}

// Where part `i` of `parts` of n things begins.
__host__ __device__ constexpr int part_begin(int n, int i, int parts) { return n * i / parts; }

// The sums of a warp, as [token][row] of its block.
template <int kTiles>
__device__ __forceinline__ void store_sums(const float (&sums)[kMostPairs][kTiles][4], int pairs,
                                           int tokens, int pitch, float* out) {
  const int g = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = tile * 8 + 2 * j + i % 2;
      if (token >= tokens) continue;
#pragma unroll
      for (int p = 0; p < kMostPairs; ++p) {
        if (p < pairs) {
          out[token * pitch + p * kPairRows + i / 2 * SmallTile::kRows + g] = sums[p][tile][i];
        }
      }
    }
  }
}

__device__ __forceinline__ float4 add(const float4& a, const float4& b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// Writes the rows before `end` of four of a token; `up` is of gated products.
__device__ __forceinline__ void store_rows(const Args& a, int token, int row, int end,
                                           const float4& sum, const float4& up) {
  const int64_t at = int64_t{token} * a.y_stride + row;
  const float v[4] = {sum.x, sum.y, sum.z, sum.w};
  if (a.gated) {
    const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(silu(v[0]) * up.x, silu(v[1]) * up.y),
                                     __floats2bfloat162_rn(silu(v[2]) * up.z, silu(v[3]) * up.w)};
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(a.y) + at) =
        reinterpret_cast<const uint2&>(pairs);
    return;
  }
  float* y = static_cast<float*>(a.y) + at;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row + i < end) y[i] = a.accumulate ? y[i] + v[i] : v[i];
  }
}

// Adds up partial [slice][token][row] over the slices of a block and over its cluster, and writes
// this block's part of the outputs.
template <typename Cluster>
__device__ __forceinline__ void finish(const Args& a, const Cluster& cluster, int first_row,
                                       int end_row, int pairs, int pitch, float* partial) {
  const int rank = cluster.block_rank(), splits = cluster.num_blocks();
  const auto at = [&](float* p, int token, int row) -> float4& {
    return *reinterpret_cast<float4*>(p + token * pitch + row);
  };
  if (a.slices > 1) {
    const int quads = pairs * (kPairRows / 4);
    for (int i = threadIdx.x; i < a.tokens * quads; i += blockDim.x) {
      const int token = i / quads, row = i % quads * 4;
      float4 sum = at(partial, token, row);
      for (int s = 1; s < a.slices; ++s) {
        sum = add(sum, at(partial + s * a.tokens * pitch, token, row));
      }
      at(partial, token, row) = sum;
    }
  }
  cluster.sync();

  const int outputs = a.gated ? SmallTile::kRows : kPairRows;
  const int quads = pairs * (outputs / 4), all = a.tokens * quads;
  const int end = part_begin(all, rank + 1, splits);
  for (int i = part_begin(all, rank, splits) + threadIdx.x; i < end; i += blockDim.x) {
    const int token = i / quads, out = i % quads * 4;  // among the outputs of the cluster
    const int row = a.gated ? out / outputs * kPairRows + out % outputs : out;
    const auto sum_of = [&](int r) {
      float4 v[kMostSplits];
#pragma unroll
      for (int b = 0; b < kMostSplits; ++b) {
        if (b < splits) v[b] = at(cluster.map_shared_rank(partial, b), token, r);
      }
      float4 sum = v[0];
#pragma unroll
      for (int b = 1; b < kMostSplits; ++b) {
        if (b < splits) sum = add(sum, v[b]);
      }
      return sum;
    };
    const float4 sum = sum_of(row);
    const float4 up = a.gated ? sum_of(row + SmallTile::kRows) : sum;
    store_rows(a, token, first_row + out, end_row, sum, up);
  }
  cluster.sync();  // the others have read this block's sums
}

// The part of the work that a warp has.
template <DType kType>
struct Part {
  static constexpr int kColumns = PairOf<kType>::kColumns;

  int warp, slice;
  bool apart;                   // the cluster has rows apart
  int first_pair, block_pairs;  // of the cluster
  int pair, pairs;              // of these the warp's
  int block_tile, block_tiles;  // columns of tiles of the block
  int tile, tiles;              // of these the warp's
  int first_column, columns;    // of the block
  int beyond;                   // columns of its last tile that there are not

  __device__ Part(const Args& a, int rank, int splits)
      : warp(threadIdx.x / 32), slice(warp % a.slices) {
    const int number = blockIdx.x / splits, team = warp / a.slices;
    apart = number >= a.clusters;
    first_pair = apart ? (number - a.clusters) * a.apart_block_pairs : number * a.block_pairs;
    block_pairs = apart ? min(a.apart_block_pairs, a.apart_pairs - first_pair)
                        : min(a.block_pairs, a.pairs - first_pair);
    pair = part_begin(block_pairs, team, a.teams);
    pairs = part_begin(block_pairs, team + 1, a.teams) - pair;
    block_tile = part_begin(a.across, rank, splits);
    block_tiles = part_begin(a.across, rank + 1, splits) - block_tile;
    tile = part_begin(block_tiles, slice, a.slices);
    tiles = part_begin(block_tiles, slice + 1, a.slices) - tile;
    first_column = block_tile * kColumns;
    columns = min(block_tiles * kColumns, a.cols - first_column);
    beyond = block_tiles * kColumns - columns;
  }
};

// Where this lane finds the weights of its warp. Rows past the end repeat the last ones.
template <DType kType>
__device__ __forceinline__ Places<kType> places_of(const Args& a, const Part<kType>& part) {
  using Pair = PairOf<kType>;
  const int lane = threadIdx.x % 32, column = part.block_tile + part.tile;
  Places<kType> places;
#pragma unroll
  for (int pair = 0; pair < kMostPairs; ++pair) {
    const int upper = (part.first_pair + part.pair + pair) * (a.gated ? 1 : 2);
    const int tiles[2] = {upper, upper + (a.gated ? a.rows / SmallTile::kRows : 1)};
#pragma unroll
    for (int i = 0; i < Pair::kParts; ++i) {
      if constexpr (kType == DType::kBF16) {
        const int row = tiles[i / 2] * SmallTile::kRows + i % 2 * 4 + lane / 8;
        const uint32_t first = min(row, a.weight_rows - 1) * static_cast<uint32_t>(a.cols);
        places.at[pair][i] = (first + column * Pair::kColumns + lane % 8 * 8) * 2;
      } else {
        const uint32_t tile = min(tiles[i], a.down - 1) * a.across + column;
        places.at[pair][i] = tile * Pair::kTileBytes + lane * 16;
      }
    }
  }
  return places;
}

// Zeros behind the activations' columns.
template <DType kType>
__device__ __forceinline__ void clear_beyond(const Args& a, const Part<kType>& part,
                                             __nv_bfloat16* x) {
  const int vectors = part.beyond / 8;
  for (int i = threadIdx.x; i < vectors * a.tokens; i += blockDim.x) {
    uint4* row = reinterpret_cast<uint4*>(x + i / vectors * a.pitch + part.columns);
    row[i % vectors] = make_uint4(0, 0, 0, 0);
  }
}

// The activations of the block's columns; called by one warp.
template <DType kType>
__device__ __forceinline__ void ask_for_activations(const Args& a, const Part<kType>& part,
                                                    __nv_bfloat16* x, const Barrier& loaded) {
  const int lane = threadIdx.x % 32;
  const uint32_t bytes = part.columns * sizeof(__nv_bfloat16);
  if (lane == 0) loaded.arrive_and_expect(a.tokens * bytes);
  __syncwarp();
  if (lane < a.tokens) {
    copy_bulk(x + lane * a.pitch, a.x + int64_t{lane} * a.cols + part.first_column, bytes, loaded);
  }
}

// This lane's activations of a column of tiles of the block.
template <DType kType, int kTiles>
struct Tokens {
  static constexpr int kColumns = PairOf<kType>::kColumns;
  const __nv_bfloat16* at[kTiles];

  __device__ Tokens(const Args& a, const __nv_bfloat16* x, int column) {
    const int n = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      at[t] = x + min(t * 8 + n, a.tokens - 1) * a.pitch + column * kColumns + j * 8;
    }
  }
  __device__ __forceinline__ void next() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) at[t] += kColumns;
  }
};

// The warp's columns of its rows apart.
template <DType kType, int kTiles>
__device__ __forceinline__ void multiply_apart(const Args& a, const Part<kType>& part,
                                               Tokens<kType, kTiles> tokens,
                                               float (&sums)[kMostPairs][kTiles][4]) {
  const int lane = threadIdx.x % 32;
  for (int t = 0; t < part.tiles; ++t, tokens.next()) {
    const int at = part.first_column + (part.tile + t) * SmallTile::kColumns + lane % 4 * 8;
#pragma unroll
    for (int p = 0; p < kMostPairs; ++p) {
      if (p >= part.pairs) break;
      const int row = (part.first_pair + part.pair + p) * kPairRows + lane / 4;
      const auto row_at = [&](int r) {
        return a.apart + int64_t{min(r, a.apart_rows - 1)} * a.cols + at;
      };
      add_apart(row_at(row), row_at(row + SmallTile::kRows), a.cols - at, tokens.at, sums[p]);
    }
  }
}

// The same of its weights. `group_sums` is this lane's.
template <DType kType, int kTiles>
__device__ __forceinline__ void multiply(const Part<kType>& part,
                                         PairStream<kType, kSlots<kType, kTiles>>& stream,
                                         Tokens<kType, kTiles> tokens, const float* group_sums,
                                         int to_low, float (&sums)[kMostPairs][kTiles][4]) {
  const auto step = [&]<int kPairs>() {
    const unsigned char* at = stream.template wait<kPairs>();
    if constexpr (kType == DType::kBF16) {
      add_dense<kTiles, kPairs>(at, tokens.at, sums);
    } else {
      add_small<kType, kTiles, kPairs>(at, tokens.at, group_sums, to_low, sums);
    }
    stream.template refill<kPairs>();
  };
  for (int t = 0; t < part.tiles; ++t, tokens.next()) {
    if (part.pairs == 2) {
      step.template operator()<2>();
    } else if (part.pairs == 1) {
      step.template operator()<1>();
    }
    group_sums += SmallTile::kGroups * GroupSums<kTiles>::kPitch;
  }
}

template <DType kType, int kTiles>
__global__ void __launch_bounds__(kMostWarps * 32, 1) batch_kernel(const __grid_constant__ Args a) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // small_batch_takes() nothing for others
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ uint64_t loaded[1];
  const auto cluster = cooperative_groups::this_cluster();
  const Part<kType> part(a, cluster.block_rank(), cluster.num_blocks());
  grid_release();

  // Activations [token][column], behind them sums of groups, and the rings.
  auto* x = reinterpret_cast<__nv_bfloat16*>(shared);
  const GroupSums<kTiles> of_groups{
      reinterpret_cast<float*>(shared + a.tokens * a.pitch * sizeof(__nv_bfloat16)),
      a.most_tiles * SmallTile::kGroups * GroupSums<kTiles>::kPitch};
  unsigned char* rings =
      reinterpret_cast<unsigned char*>(of_groups.at) + group_bytes<kType, kTiles>(a.most_tiles);
  constexpr int kUnderWay = kSlots<kType, kTiles>;
  PairStream<kType, kUnderWay> stream(rings + part.warp * kUnderWay * kPairBytes<kType>, a.weight,
                                      places_of(a, part), part.pairs, part.apart ? 0 : part.tiles);
  const Barrier barrier{loaded};
  if (threadIdx.x == 0) {
    barrier.init(1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  clear_beyond(a, part, x);
  __syncthreads();
  grid_wait();
  if (part.warp == 0) ask_for_activations(a, part, x, barrier);
  barrier.wait(0);

  if constexpr (kType == DType::kQ4) {
    for (int t = part.warp; t < part.block_tiles; t += blockDim.x / 32) {
      of_groups.compute(Tokens<kType, kTiles>(a, x, t).at, t);
    }
    __syncthreads();
  }
  float sums[kMostPairs][kTiles][4] = {};
  const Tokens<kType, kTiles> tokens(a, x, part.tile);
  if (part.apart) {
    if constexpr (kType != DType::kBF16) multiply_apart(a, part, tokens, sums);
  } else {
    const int lane = threadIdx.x % 32;
    const float* group_sums =
        of_groups.at + (part.tile * SmallTile::kGroups + lane % 4) * GroupSums<kTiles>::kPitch +
        lane / 4;
    multiply(part, stream, tokens, group_sums, of_groups.to_low, sums);
  }

  copy_wait<0>();
  __syncthreads();
  const int pitch = a.block_pairs * kPairRows + 4;  // so that no two lanes meet in a bank
  float* partial = reinterpret_cast<float*>(shared);
  store_sums(sums, part.pairs, a.tokens, pitch,
             partial + part.slice * a.tokens * pitch + part.pair * kPairRows);
  __syncthreads();
  const int outputs = a.gated ? SmallTile::kRows : kPairRows;
  finish(a, cluster, (part.apart ? a.rows : 0) + part.first_pair * outputs,
         a.rows + (part.apart ? a.apart_rows : 0), part.block_pairs, pitch, partial);
#endif
}

}  // namespace gsa::cuda::batch
