#include "kernels/cuda/small_weights.h"

#include <cassert>

#include "kernels/cuda/small_tiles.cuh"

namespace gsa::cuda {
namespace {

constexpr int kTilesOfBlock = 8;  // a warp for each
constexpr int kThreads = kTilesOfBlock * 32;
constexpr int kGroup = static_cast<int>(QuantizedRow::kGroup);

// A matrix as files hold it.
struct Stored {
  const unsigned char* rows;
  int count, groups;
  int row_bytes, scales, minima;  // where these begin in a row
};

// A lane's eight integers of a group.
template <DType kType>
__device__ void stored_integers(const unsigned char* group, int j, uint8_t (&v)[8]) {
  for (int i = 0; i < 8; ++i) {
    const int column = 8 * j + i;
    if constexpr (kType == DType::kQ8) {
      v[i] = group[column];
    } else {
      v[i] = column < 16 ? group[column] & 15 : group[column - 16] >> 4;
    }
  }
}

template <DType kType>
__global__ void pack_kernel(Stored from, int across, int64_t tiles, unsigned char* out) {
  using Tile = SmallTileOf<kType>;
  const int64_t tile = int64_t{blockIdx.x} * kTilesOfBlock + threadIdx.x / 32;
  grid_release();
  grid_wait();
  if (tile >= tiles) return;
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const int64_t row = tile / across * Tile::kRows + g;
  const int first = static_cast<int>(tile % across) * Tile::kGroups;
  const unsigned char* stored = from.rows + row * from.row_bytes;
  const auto there = [&](int group) { return row < from.count && first + group < from.groups; };
  out += tile * Tile::kBytes;
  uint32_t* words = reinterpret_cast<uint32_t*>(out);
  for (int group = 0; group < Tile::kGroups; ++group) {
    uint8_t v[8] = {};
    if (there(group)) {
      constexpr int kGroupBytes = kType == DType::kQ8 ? kGroup : kGroup / 2;
      stored_integers<kType>(stored + (first + group) * kGroupBytes, j, v);
    }
    if constexpr (kType == DType::kQ8) {
      uint32_t* to = words + (group / 2 * 32 + lane) * 4 + group % 2 * 2;
      to[0] = SmallIntegers<kType>::pack({v[0], v[1], v[2], v[3]});
      to[1] = SmallIntegers<kType>::pack({v[4], v[5], v[6], v[7]});
    } else {
      words[lane * 4 + group] = SmallIntegers<kType>::pack(v);
    }
  }
  const auto put = [&](int to, int at) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(stored + at) + first;
    reinterpret_cast<uint16_t*>(out + to)[lane] = there(j) ? halves[j] : uint16_t{0};
  };
  put(Tile::kScales, from.scales);
  if constexpr (kType == DType::kQ4) put(Tile::kMinima, from.minima);
}

// A warp has a tile, and a lane eight columns at a time.
template <DType kType>
__global__ void widen_kernel(const unsigned char* tiles, int across, int rows, int columns,
                             __nv_bfloat16* out) {
  using Tile = SmallTileOf<kType>;
  const int64_t tile = int64_t{blockIdx.x} * kTilesOfBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, g = lane / 4, j = lane % 4;
  const int64_t row = tile / across * SmallTile::kRows + g;
  grid_release();
  grid_wait();
  if (row >= rows) return;
  const unsigned char* from = tiles + tile * Tile::kBytes;
  const auto halves = [&](int offset) {
    return reinterpret_cast<const __half*>(from + offset) + g * SmallTile::kGroups;
  };
  const __half* scales = halves(Tile::kScales);
  SmallIntegers<kType> integers;
#pragma unroll
  for (int group = 0; group < SmallTile::kGroups; ++group) {
    const int column =
        static_cast<int>(tile % across) * SmallTile::kColumns + group * kGroup + 8 * j;
    integers.load(from, lane, group);
    if (column >= columns) continue;
    const float scale = __half2float(scales[group]);
    float minimum = 0;
    if constexpr (kType == DType::kQ4) {
      minimum = __half2float(halves(Tile::kMinima)[group]);
    }
    alignas(16) __nv_bfloat162 pairs[4];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const uint32_t two = integers.pairs(group, p);
      const float2 n = __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(two));
      constexpr float kOffset = SmallIntegers<kType>::kOffset;
      pairs[p] = __floats2bfloat162_rn(scale * (n.x - kOffset) + minimum,
                                       scale * (n.y - kOffset) + minimum);
    }
    __nv_bfloat16* to = out + row * columns + column;
    if (columns % 8 == 0) {
      *reinterpret_cast<uint4*>(to) = reinterpret_cast<const uint4&>(pairs);
    } else {
      for (int i = 0; i < 8 && column + i < columns; ++i) {
        to[i] = i % 2 == 0 ? pairs[i / 2].x : pairs[i / 2].y;
      }
    }
  }
}

Grid grid_of(int64_t tiles) {
  return {.blocks = static_cast<unsigned>((tiles + kTilesOfBlock - 1) / kTilesOfBlock),
          .threads = kThreads};
}

}  // namespace

void pack_small(const Launch& how, const TensorView& stored, void* tiles) {
  assert(is_quantized(stored.dtype) && stored.rank == 2);
  const int64_t columns = stored.shape[1], across = SmallTile::across(columns);
  const int64_t count = across * SmallTile::down(stored.shape[0]);
  const DType type = stored.dtype;
  const auto kernel = type == DType::kQ8 ? pack_kernel<DType::kQ8> : pack_kernel<DType::kQ4>;
  const Stored from{.rows = static_cast<const unsigned char*>(stored.data),
                    .count = static_cast<int>(stored.shape[0]),
                    .groups = static_cast<int>(QuantizedRow::groups(columns)),
                    .row_bytes = static_cast<int>(QuantizedRow::bytes(type, columns)),
                    .scales = static_cast<int>(QuantizedRow::scales_offset(type, columns)),
                    .minima = static_cast<int>(QuantizedRow::minima_offset(type, columns))};
  launch(how, grid_of(count), kernel, from, static_cast<int>(across), count,
         static_cast<unsigned char*>(tiles));
}

void widen_small(const Launch& how, const TensorView& weight, int64_t first, int64_t count,
                 void* out) {
  assert(is_quantized(weight.dtype) && first % SmallTile::kRows == 0);
  const int64_t across = SmallTile::across(weight.shape[1]);
  const auto kernel =
      weight.dtype == DType::kQ8 ? widen_kernel<DType::kQ8> : widen_kernel<DType::kQ4>;
  const TensorView skipped(weight.data, weight.dtype, {first, weight.shape[1]});
  launch(how, grid_of(across * SmallTile::down(count)), kernel,
         static_cast<const unsigned char*>(weight.data) + small_bytes(skipped),
         static_cast<int>(across), static_cast<int>(count), static_cast<int>(weight.shape[1]),
         static_cast<__nv_bfloat16*>(out));
}

}  // namespace gsa::cuda
