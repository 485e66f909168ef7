#include "kernels/cuda/small_matvec.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/dense_stream.cuh"
#include "kernels/cuda/small_activations.cuh"
#include "kernels/cuda/small_few.cuh"

namespace gsa::cuda {
namespace {

using namespace small;

// A warp owns 16 rows, the rows of two tiles, and a slice of the columns; the warps of a block that
// have the same rows add up their sums at the end. A warp copies pairs of tiles into a ring of its
// own in shared memory ahead of their use: warps need not wait for each other, and the copies are
// under way before the activations are known.
static_assert(SmallTile::kRows == kTileRows);

// Pairs in a ring: as many as there is room for, but to ask for many at once delays the
// activations.
constexpr int kLeastDepth = 2, kMostDepth = 4;

template <DType kType>
constexpr int kPairBytes = 2 * SmallTileOf<kType>::kBytes;

// A warp's weights on their way through its ring.
template <DType kType>
class TileStream {
 public:
  // `upper` and `lower` are the slice's first tiles in global memory.
  __device__ TileStream(unsigned char* ring, int depth, const unsigned char* upper,
                        const unsigned char* lower, int tiles)
      : ring_(ring),
        depth_(depth),
        upper_(reinterpret_cast<const uint4*>(upper) + lane()),
        lower_(reinterpret_cast<const uint4*>(lower) + lane() - kVectors),
        left_(tiles) {
    for (int place = 0; place < depth; ++place) ask(place);
  }

  // Waits for the next pair.
  __device__ __forceinline__ void wait() const {
    static_assert(kMostDepth <= 4);
    if (depth_ == 4) {
      copy_wait<3>();
    } else if (depth_ == 3) {
      copy_wait<2>();
    } else if (depth_ == 2) {
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncwarp();
  }
  __device__ __forceinline__ const unsigned char* upper(int place) const {
    return ring_ + place * kPairBytes<kType>;
  }
  __device__ __forceinline__ const unsigned char* lower(int place) const {
    return upper(place) + SmallTileOf<kType>::kBytes;
  }
  // The pair in the place has been used: asks for the one that takes its place.
  __device__ __forceinline__ void refill(int place) {
    __syncwarp();
    ask(place);
  }

 private:
  static constexpr int kVectors = SmallTileOf<kType>::kBytes / 16;

  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ __forceinline__ void ask(int place) {
    if (left_ > 0) {
      uint4* const to = reinterpret_cast<uint4*>(ring_ + place * kPairBytes<kType>) + lane();
#pragma unroll
      for (int v = 0; v < 2 * kVectors; v += 32) {
        if (v + 32 > 2 * kVectors && v + lane() >= 2 * kVectors) continue;
        const bool of_upper = v + 32 <= kVectors || (v < kVectors && v + lane() < kVectors);
        copy_async(to + v, (of_upper ? upper_ : lower_) + v);
      }
      upper_ += kVectors;
      lower_ += kVectors;
      --left_;
    }
    copy_commit();
  }

  unsigned char* ring_;
  int depth_;
  const uint4* upper_;  // of the next pair to be asked for; this lane's first vector
  const uint4* lower_;  // so that those behind the upper tile's are counted on
  int left_;
};

// The sums of a warp as [token][row] in shared memory.
template <int kTokens>
__device__ __forceinline__ void store_sums(float (&sums)[SmallTokens<kTokens>::kTiles][4],
                                           int tokens, float* out) {
  const int g = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
#pragma unroll
  for (int tile = 0; tile < SmallTokens<kTokens>::kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float sum = sums[tile][i];
      const int column = 2 * j + i % 2, token = tile * 8 + column;
      if (column < SmallTokens<kTokens>::kTogether && token < tokens) {
        out[token * kRows + g + i / 2 * kTileRows] = sum;
      }
    }
  }
}

// A block of the rows apart, for up to four of the tokens: those behind them are other blocks'.
__device__ __forceinline__ void run_apart(const dense::Args& all, int block, unsigned char* shared,
                                          float* squares) {
  const int row_blocks = dense::blocks_of(all), first = block / row_blocks * kMatVecTokens;
  dense::Args part = all;
  part.x += int64_t{first} * all.cols;
  part.y += int64_t{first} * all.y_stride;
  part.tokens = min(all.tokens - first, kMatVecTokens);
  dense::run(part, block % row_blocks, shared, squares);
}

template <DType kType, int kTokens>
__global__ void __launch_bounds__(kMostWarps * 32, 1)
    small_kernel(const __grid_constant__ Args a, const __grid_constant__ dense::Args apart) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ float squares[kTokens * kMostWarps];
  if (blockIdx.x >= a.blocks) return run_apart(apart, blockIdx.x - a.blocks, shared, squares);
  using Tokens = SmallTokens<kTokens>;
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int n = threadIdx.x % 32 / 4, j = threadIdx.x % 4;
  const int slice = warp % a.slices, unit = blockIdx.x * a.groups + warp / a.slices;
  const int first_tile = slice_begin(a, slice);
  const int tiles = slice_begin(a, slice + 1) - first_tile;
  grid_release();

  // Tiles past the end repeat the last ones.
  const auto slice_of = [&](int row_of_tiles) {
    return a.weight + (int64_t{min(row_of_tiles, a.down - 1)} * a.across + first_tile) *
                          SmallTileOf<kType>::kBytes;
  };
  const int ring_bytes = a.depth * kPairBytes<kType>;
  TileStream<kType> stream(shared + warp * ring_bytes, a.depth, slice_of(a.gated ? unit : 2 * unit),
                           slice_of(a.gated ? unit + a.rows / kTileRows : 2 * unit + 1), tiles);
  const Panel<kType> panel(shared + warps * ring_bytes, a.tokens, panel_columns(a));
  if (a.norm_weight != nullptr) {
    for (int c = threadIdx.x * 32; c < a.cols; c += blockDim.x * 32) prefetch(a.norm_weight + c);
  }
  grid_wait();

  float sums[Tokens::kTiles][4] = {};
  const int most_tiles = (a.across + a.slices - 1) / a.slices;
  for (int p = 0, place = 0; p * a.panel < most_tiles; ++p) {
    if (p > 0) __syncthreads();
    load_panel<kType, kTokens>(a, p, panel, squares);
    __syncthreads();
    const int column = (a.whole ? first_tile : slice * a.panel) * SmallTile::kColumns;
    SmallOperand<kTokens> operand;
    operand.to_low = a.tokens * panel.pitch;
    operand.sums_to_low = a.tokens * panel.sums_pitch;
#pragma unroll
    for (int tile = 0; tile < Tokens::kTiles; ++tile) {
      const int row = Tokens::row(tile, n, a.tokens);
      operand.x[tile] = panel.x + row * panel.pitch + column + 8 * j;
      operand.sums[tile] = panel.sums + row * panel.sums_pitch + column / 32 + j;
    }
    const int end = min((p + 1) * a.panel, tiles);
    for (int i = p * a.panel; i < end; ++i) {
      stream.wait();
      add_tile<kType, kTokens>(stream.upper(place), stream.lower(place), operand, sums);
      stream.refill(place);
      if (++place == a.depth) place = 0;
#pragma unroll
      for (int tile = 0; tile < Tokens::kTiles; ++tile) {
        operand.x[tile] += SmallTile::kColumns;
        operand.sums[tile] += SmallTile::kGroups;
      }
    }
  }

  copy_wait<0>();
  __syncthreads();
  float* partial = reinterpret_cast<float*>(shared);  // [warp][token][row]
  store_sums<kTokens>(sums, a.tokens, partial + warp * a.tokens * kRows);
  __syncthreads();
  finish_rows(a, blockIdx.x, partial, squares);
}

// Divides a block's shared memory between the rings of its warps and the activations: as many
// warps as are wanted, as long as there is room for a tile of each slice; returns how much it
// takes.
template <DType kType>
size_t divide(Args& a, int warps_wanted, size_t room) {
  constexpr size_t kPair = kPairBytes<kType>;
  const size_t fixed = Panel<kType>::bytes(a.tokens, 0);
  const size_t of_tile = Panel<kType>::bytes(a.tokens, SmallTile::kColumns) - fixed;
  a.groups = std::min<int>(a.groups, (room - fixed - of_tile) / (kLeastDepth * kPair));
  a.slices = std::clamp(warps_wanted / a.groups, 1, a.across);
  const auto fits = [&](int tiles, int depth) {
    return a.groups * a.slices * depth * kPair + fixed + tiles * of_tile <= room;
  };
  while (a.slices > 1 && !fits(a.slices, kLeastDepth)) --a.slices;
  const int most_tiles = (a.across + a.slices - 1) / a.slices;
  a.whole = fits(a.across, kLeastDepth);
  a.panel = a.whole ? most_tiles : 1;
  while (!a.whole && fits(a.slices * (a.panel + 1), kLeastDepth)) ++a.panel;
  const int columns = panel_columns(a);
  a.depth = std::min(kLeastDepth, most_tiles);
  while (a.depth < std::min(kMostDepth, most_tiles) &&
         fits(columns / SmallTile::kColumns, a.depth + 1)) {
    ++a.depth;
  }
  const size_t warps = a.groups * a.slices;
  return std::max(warps * a.depth * kPair + Panel<kType>::bytes(a.tokens, columns),
                  warps * a.tokens * kRows * sizeof(float));
}

// Chooses how many warps a block has, and divides its shared memory; returns how much it takes.
template <DType kType>
size_t choose(Args& a, dense::Args& apart, size_t room) {
  const Args given = a;
  for (int warps = kMostWarps;; warps -= 4) {
    a = given;
    a.groups = std::min(given.groups, warps);
    const size_t bytes = divide<kType>(a, warps, room);
    if (apart.rows == 0) return bytes;
    apart.groups = 1;
    apart.slices = a.groups * a.slices;
    dense::Args part = apart;
    part.tokens = std::min(apart.tokens, kMatVecTokens);
    const int64_t left = room - apart.slices * dense::kRingBytes - 4 * part.tokens * 32;
    const size_t apart_bytes = dense::divide(part, left);
    apart.panel_pieces = part.panel_pieces;
    apart.panel = part.panel;
    if (apart_bytes <= room || warps == 4) return std::max(bytes, apart_bytes);
  }
}

template <DType kType, int kTokens>
void launch_small(const Launch& how, Args args, dense::Args apart) {
  constexpr size_t kStatic = sizeof(float) * kTokens * kMostWarps;
  const size_t room = how.shared_limit - kStatic;
  [[maybe_unused]] static const bool allowed = [&] {
    allow_shared_memory(small_kernel<kType, kTokens>, room);
    return true;
  }();
  const int outputs = args.gated ? kTileRows : kRows;
  const int units = (args.rows + outputs - 1) / outputs;
  args.groups = std::min((units + how.multiprocessors - 1) / how.multiprocessors, kMostWarps);
  const size_t bytes = choose<kType>(args, apart, room);
  assert(bytes <= room);
  args.blocks = (units + args.groups - 1) / args.groups;
  const int blocks_apart =
      dense::blocks_of(apart) * ((args.tokens + kMatVecTokens - 1) / kMatVecTokens);
  launch(how,
         {.blocks = static_cast<unsigned>(args.blocks + blocks_apart),
          .threads = static_cast<unsigned>(args.groups * args.slices * 32),
          .shared_bytes = bytes},
         small_kernel<kType, kTokens>, args, apart);
}

template <DType kType>
void launch_small(const Launch& how, const Args& args, const dense::Args& apart) {
  if (args.tokens <= 8) return launch_small<kType, 8>(how, args, apart);
  launch_small<kType, 16>(how, args, apart);
}

}  // namespace

bool fits_small_mat_vec(const MatVec& m) {
  const int64_t cols = m.weight.shape[1];
  if (!is_quantized(m.weight.dtype) || cols % 4 != 0) return false;
  if (m.gated && m.weight.shape[0] % (2 * kTileRows) != 0) return false;
  return !m.apart || (dense::fits(m.apart) && cols >= kMostWarps * dense::kPiece);
}

void small_mat_vec(const Launch& how, const MatVec& m) {
  assert(m.tokens >= 1 && m.tokens <= mat_vec_tokens(m.weight.dtype) && fits_small_mat_vec(m));
  if (m.tokens <= kMatVecTokens) return small_few(how, m);
  const int rows = static_cast<int>(m.gated ? m.weight.shape[0] / 2 : m.weight.shape[0]);
  const Args args{.x = m.x,
                  .norm_weight = m.norm_weight,
                  .weight = static_cast<const unsigned char*>(m.weight.data),
                  .y = m.y,
                  .tokens = m.tokens,
                  .rows = rows,
                  .cols = static_cast<int>(m.weight.shape[1]),
                  .y_stride = stride_of(m),
                  .blocks = 0,
                  .across = static_cast<int>(SmallTile::across(m.weight.shape[1])),
                  .down = static_cast<int>(SmallTile::down(m.weight.shape[0])),
                  .groups = 0,
                  .slices = 0,
                  .depth = 0,
                  .panel = 0,
                  .whole = false,
                  .eps = m.eps,
                  .normalize = m.normalize,
                  .gated = m.gated,
                  .accumulate = m.accumulate};
  const dense::Args apart = m.apart ? dense::args_of(product_apart(m)) : dense::Args{};
  if (m.weight.dtype == DType::kQ8) return launch_small<DType::kQ8>(how, args, apart);
  launch_small<DType::kQ4>(how, args, apart);
}

}  // namespace gsa::cuda
