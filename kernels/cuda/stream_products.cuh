// Products inside of a persistent kernel.
#pragma once

#include "kernels/cuda/stream_copier.cuh"
#include "kernels/cuda/stream_exchange.cuh"
#include "kernels/cuda/stream_math.cuh"
#include "kernels/cuda/stream_panel.cuh"

namespace gsa::cuda {

// The products of a step, of at most kTokens tokens.
template <DType kType, int kTokens>
class StreamProducts {
 public:
  __device__ StreamProducts(const StreamStep& a, const StreamPlan& at, unsigned char* shared,
                            const Ring& ring)
      : a_(a),
        ring_(ring),
        panel_(at, shared),
        partial_(reinterpret_cast<float*>(shared + at.partial)),
        squares_(reinterpret_cast<float*>(shared + at.squares)),
        residual_(reinterpret_cast<float*>(shared + at.residual)) {
    ring_.advance(warp_);
  }

  // The block's outputs of the residual stream stay in shared memory.
  __device__ __forceinline__ void embed(const StreamShare& own) {
#pragma unroll 1
    for (int i = threadIdx.x; i < a_.T * own.count; i += kStreamThreads) {
      const int t = i / own.count, row = own.first + i - t * own.count;
      residual_[i] = to_float(a_.embeddings[int64_t{a_.tokens[t]} * a_.D + row]);
      publish_all<kReplicas>(a_.x + t * a_.D + row, a_.T * a_.D, residual_[i], a_.epoch);
    }
  }

  // y = W norm(x) for the block's outputs. What does not depend on the activations is found before
  // they are waited for, since every block waits for the last one.
  __device__ __forceinline__ void product(int which, const StreamShare* shares, const float* norm,
                                          uint32_t epoch) {
    const bool apart = which == kApart;
    if (apart && !kSmallType) return;
    const StreamShare& s = shares[which];
    panel_.set_pieces(s.panel);
    Columns columns;
    if (!kSmallType || apart) columns = find_columns(s);
    int group = 0;
#pragma unroll 1
    do {
      const Finish how = find_finish(s, group);
      const Output output = find_output(s, group, threadIdx.x);
#pragma unroll 1
      for (int panel = 0; panel < s.pieces; panel += s.panel) {
        const int pieces = min(s.panel, s.pieces - panel);
        const Stages stages = find_stages(s, group, panel, pieces);
        if (group + panel > 0) stream_sync();  // nobody still reads what is written next
        if (!apart && (group == 0 || s.panel < s.pieces)) {
          if (panel == 0) clear_squares();
          gather(s, norm, epoch, panel * kPiece, pieces * kPiece, which == kQkvf);
          stream_sync();
        }
        if (kSmallType && !apart) {
          add_stages<kSmallType>(s, stages, columns, group, panel);
        } else {
          add_stages<false>(s, stages, columns, group, panel);
        }
        if (group == 0 && panel + s.panel >= s.pieces) share_squares();
      }
      if (kSmallType && which == kQkvf) return;  // goes on with the rows apart
      stream_sync();
      if (apart) {
        const StreamShare& before = shares[kQkvf];
        finish(kQkvf, before, find_finish(before, group), group,
               find_output(before, group, threadIdx.x), epoch);
      }
      finish(which, s, how, group, output, which == kDown ? epoch + 1 : epoch);
      group += s.group_tiles;
    } while (group < s.tiles);
  }

 private:
  static constexpr bool kSmallType = kSmall<kType>;
  static constexpr int kPairs = (kTokens + 1) / 2;  // of tokens

  // Where in a stage this lane's first 16 bytes of each block of columns are: of most tiles, and of
  // the one with another number of rows.
  struct Columns {
    int at[kPieceBlocks], rest_at[kPieceBlocks];
  };
  // The stages of a group of tiles and a panel: stage number i is of tile i % tiles of the group.
  struct Stages {
    int count, tiles;
    float inverse_tiles;
    int tile, piece;  // of this warp's first
    int rest;         // the first tile with another number of rows
    int to_tile;      // floats from a tile's sums to the next one's
    float* partial;
  };
  // One of the block's outputs: where its sums begin and where it goes.
  struct Output {
    int t;
    const float* from;
    float* residual;
    float* to;
  };
  // What finish() needs of a product and a group of its tiles.
  struct Finish {
    float eps, inverse_cols;
    int count, pieces;
    bool gated;
    int to_up;     // from an output's sums to those of its other row
    int replicas;  // floats from one to the next
  };

  // Takes a panel of activations of all tokens, times the norm's weight, into shared memory, and
  // adds up this thread's squares of the plain values. Everything is asked for before the first
  // value is waited for.
  __device__ __forceinline__ void gather(const StreamShare& s, const float* norm, uint32_t epoch,
                                         int first, int width, bool for_apart) {
    constexpr int kVectors = kTokens == 1 ? 6 : kTokens == 2 ? 3 : 2;
    constexpr int kStride = kStreamThreads * 4;
    const int there = s.cols - first;  // zeros behind them
#pragma unroll 1
    for (int begin = threadIdx.x * 4; begin < width; begin += kVectors * kStride) {
      float4 weight[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        weight[i] = make_float4(1, 1, 1, 1);
        if (norm != nullptr && begin + i * kStride < min(width, there)) {
          weight[i] = load4(norm + first + begin + i * kStride);
        }
      }
      const float* input = s.input + first + begin;
      uint4 seen[kVectors * kTokens];
      receive_all(
          seen, epoch,
          [&](int n) {
            return begin + n / kTokens * kStride < min(width, there) && n % kTokens < a_.T;
          },
          [&](int n) { return input + n % kTokens * s.cols + n / kTokens * kStride; });
#pragma unroll
      for (int n = 0; n < kVectors * kTokens; ++n) {
        const int i = n / kTokens, t = n % kTokens;
        if (begin + i * kStride >= width) break;
        const float4 x = values_of(seen[n]);
        own_squares_[t] += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        panel_.keep(t, begin + i * kStride, times(x, weight[i]), for_apart);
      }
    }
  }

  // The squares of all columns, by warps, for scale_of(); nobody reads them from a gather's end to
  // that of the stages.
  __device__ __forceinline__ void clear_squares() {
#pragma unroll
    for (float& sum : own_squares_) sum = 0;
  }
  __device__ __forceinline__ void share_squares() {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = warp_sum(own_squares_[t]);
      if (lane_ == 0) squares_[t * kStreamWarps + warp_] = sum;
    }
  }

  __device__ __forceinline__ Stages find_stages(const StreamShare& s, int group, int panel,
                                                int pieces) const {
    Stages to;
    to.tiles = min(s.group_tiles, s.tiles - group) * s.kinds;
    to.count = to.tiles * pieces;
    to.inverse_tiles = 1.0f / static_cast<float>(max(to.tiles, 1));  // blocks may have none
    to.piece = piece_of(to, place_);
    to.tile = place_ - to.piece * to.tiles;
    to.rest = (s.most_tiles - 1 - group) * s.kinds;
    to.to_tile = s.pieces * kTokens * kTileRows;
    to.partial = partial_ + s.partial + panel * kTokens * kTileRows;
    return to;
  }
  __device__ __forceinline__ int piece_of(const Stages& stages, int place) const {
    return static_cast<int>((static_cast<float>(place) + 0.5f) * stages.inverse_tiles);
  }

  // This warp's stages, every kStreamWarps-th. Their sums go to partial_[tile][piece][token][row].
  template <bool kSmallStage>
  __device__ __forceinline__ void add_stages(const StreamShare& s, const Stages& stages,
                                             const Columns& columns, int group, int panel) {
    int tile = stages.tile, piece = stages.piece;
#pragma unroll 1
    while (place_ < stages.count) {
      float* to = stages.partial + tile * stages.to_tile + piece * kTokens * kTileRows;
      ring_.wait_full();
      if constexpr (kSmallStage) {
        add_small(has_lower(s, (group + tile) * s.tile_rows),
                  min(kPieceTiles, (s.cols - (panel + piece) * kPiece + SmallTile::kColumns - 1) /
                                       SmallTile::kColumns),
                  piece * kPiece, to);
      } else {
        add(columns, tile >= stages.rest, piece * kPiece, to);
      }
      place_ += kStreamWarps;
      piece = piece_of(stages, place_);
      tile = place_ - piece * stages.tiles;
    }
    place_ -= stages.count;
  }

  __device__ __forceinline__ Columns find_columns(const StreamShare& s) const {
    const auto place = [&](int block, int rows) {
      const int line = block * rows + row_;
      return line * 128 + ((lane_ % 4) ^ (line % 8)) * 16;
    };
    Columns columns;
#pragma unroll
    for (int block = 0; block < kPieceBlocks; ++block) {
      columns.at[block] = place(block, s.tile_rows);
      columns.rest_at[block] = place(block, s.rest_rows);
    }
    return columns;
  }

  // The stage of this warp may be filled again.
  __device__ __forceinline__ void release_stage() {
    __syncwarp();
    if (lane_ == 0) ring_.empty_barrier().arrive();
    ring_.advance(kStreamWarps);
  }

  // This warp's next stage times the activations from `column` on. A lane reads 8 columns of 32 at
  // a time of rows row_ and 8 + row_, which are as they lie the tensor cores' left operand of 16
  // rows and 16 columns: of its pairs of columns, the first and the third are of a row lane_ / 4
  // there, and the second and the fourth of a row 8 further. Of the right operand, columns 0 to 3
  // are for the former and 4 to 7 for the latter, each the high and low halves of two tokens.
  __device__ __forceinline__ void add(const Columns& columns, bool rest, int column, float* to) {
    const int n = lane_ / 4;
    const __nv_bfloat16* x =
        panel_.row(n % (kTokens == 1 ? 2 : 4)) + n / 4 * (kBoxColumns / 2) + lane_ % 4 * 8 + column;
    const unsigned char* const stage = ring_.stage();
    float d[kPairs][2][2][4] = {};  // [pair of tokens][row][half of 64 columns]
#pragma unroll
    for (int block = 0; block < kPieceBlocks; ++block) {
      uint4 weights[2][2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = rest ? columns.rest_at[block] : columns.at[block];
        const unsigned char* w = stage + (at ^ (half * 64));
        weights[0][half] = *reinterpret_cast<const uint4*>(w);
        weights[1][half] = *reinterpret_cast<const uint4*>(w + 8 * 128);
      }
#pragma unroll
      for (int pair = 0; pair < kPairs; ++pair) {
        const uint4 b =
            *reinterpret_cast<const uint4*>(x + pair * 4 * panel_.pitch() + block * kBoxColumns);
#pragma unroll
        for (int row = 0; row < 2; ++row) {
          mma(weights[row][0], b.x, b.y, d[pair][row][0]);
          mma(weights[row][1], b.z, b.w, d[pair][row][1]);
        }
      }
    }
    release_stage();
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
      const float upper = sum_of_halves(d[pair][0]), lower = sum_of_halves(d[pair][1]);
      const int t = lane_ % 4;
      if (t >= min(kTokens, 2)) continue;
      float* out = to + (2 * pair + t) * kTileRows + row_;
      out[0] = upper;
      out[8] = lower;
    }
  }

  // Both parts of a row's sum, which lanes 2 apart have.
  __device__ __forceinline__ float sum_of_halves(const float (&d)[2][4]) const {
    const float front = (d[0][0] + d[1][0]) + (d[0][1] + d[1][1]);
    const float back = (d[0][2] + d[1][2]) + (d[0][3] + d[1][3]);
    return front + __shfl_down_sync(kAllLanes, back, 2);
  }

  // The same for a stage of so many tiles of small weights beside each other.
  __device__ __forceinline__ void add_small(bool both, int tiles, int column, float* to) {
    using Tile = SmallTileOf<kTileType<kType>>;
    const unsigned char* upper = ring_.stage();
    const unsigned char* lower = both ? upper + kPieceTiles * Tile::kBytes : upper;
    auto operand = panel_.operand(column);
    typename StreamPanel<kType, kTokens>::Sums sums;
#pragma unroll 2
    for (int tile = 0; tile < tiles; ++tile) {
      sums.add(upper, lower, operand);
      upper += Tile::kBytes, lower += Tile::kBytes;
      operand.next();
    }
    release_stage();
    to += lane_ / 4;
    sums.finish([&](int token, float above, float below) {
      to[token * kTileRows] = above;
      to[token * kTileRows + 8] = below;
    });
  }

  // Number i of the outputs of a group of tiles for all tokens.
  __device__ __forceinline__ Output find_output(const StreamShare& s, int group, int i) const {
    const int rows = rows_of(s, group), begin = group * s.tile_rows;
    const int t = kTokens == 1 ? 0 : i / max(rows, 1), row = begin + i - t * rows;
    const int tile = static_cast<int>((row + 0.5f) * s.inverse_tile_rows);
    const int to_tile = s.pieces * kTokens * kTileRows;
    return {.t = t,
            .from = partial_ + s.partial + (tile - group) * s.kinds * to_tile + t * kTileRows +
                    (row - tile * s.tile_rows),
            .residual = residual_ + t * s.count + row,
            .to = s.output + int64_t{t} * s.stride + s.first + row};
  }
  __device__ __forceinline__ int rows_of(const StreamShare& s, int group) const {
    return min(s.group_tiles * s.tile_rows, s.count - group * s.tile_rows);
  }

  __device__ __forceinline__ Finish find_finish(const StreamShare& s, int group) const {
    return {.eps = s.eps,
            .inverse_cols = s.inverse_cols,
            .count = rows_of(s, group) * a_.T,
            .pieces = s.pieces,
            .gated = s.gated,
            .to_up = s.kinds == 2 ? s.pieces * kTokens * kTileRows : SmallTile::kRows,
            .replicas = a_.T * s.stride};
  }

  // Adds up the sums of pieces of a group of tiles and hands the outputs on, this thread's first
  // one of which is known.
  __device__ __forceinline__ void finish(int which, const StreamShare& s, const Finish& how,
                                         int group, Output o, uint32_t epoch) {
#pragma unroll 1
    for (int i = threadIdx.x; i < how.count;) {
      const float scale = scale_of(how, o.t);
      float y = of_pieces(o.from, how.pieces) * scale;
      if (how.gated) y = silu(y) * (of_pieces(o.from + how.to_up, how.pieces) * scale);
      if (which == kOut || which == kDown) y = *o.residual += y;
      if (which == kHead) {
        *o.to = y;
      } else if (which == kQkvf || which == kApart) {
        publish(o.to, y, epoch);
      } else {
        publish_all<kReplicas>(o.to, how.replicas, y, epoch);
      }
      i += kStreamThreads;
      if (i < how.count) o = find_output(s, group, i);
    }
  }

  __device__ __forceinline__ float of_pieces(const float* from, int pieces) const {
    constexpr int kTogether = 4;
    float sum = 0;
#pragma unroll 1
    for (int piece = 0; piece < pieces; piece += kTogether) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        sum += piece + i < pieces ? from[(piece + i) * kTokens * kTileRows] : 0.0f;
      }
    }
    return sum;
  }

  // That of the norm, which commutes with the product.
  __device__ __forceinline__ float scale_of(const Finish& norm, int t) const {
    const float* of_warps = squares_ + t * kStreamWarps;
    const float squares = sum_of(load4(of_warps)) + sum_of(load4(of_warps + 4));
    return norm.eps < 0 ? 1.0f : rsqrtf(squares * norm.inverse_cols + norm.eps);
  }

  const StreamStep& a_;
  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;
  // Of a stage of bfloat16, in an order that lets 8 lanes find 8 different banks.
  const int row_ = (lane_ / 4 % 2) * 4 + lane_ / 8;
  int place_ = warp_;  // of this warp's next stage among those to come
  float own_squares_[kTokens];
  Ring ring_;
  StreamPanel<kType, kTokens> panel_;
  float* partial_;   // see add_stages()
  float* squares_;   // [T][kStreamWarps]
  float* residual_;  // [T][outputs]
};

}  // namespace gsa::cuda
