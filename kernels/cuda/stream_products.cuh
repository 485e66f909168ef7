// Products inside of a persistent kernel.
#pragma once

#include "kernels/cuda/stream_copier.cuh"
#include "kernels/cuda/stream_exchange.cuh"
#include "kernels/cuda/stream_math.cuh"

namespace gsa::cuda {

// The products of a step, of at most kTokens tokens.
template <int kTokens>
class StreamProducts {
 public:
  __device__ StreamProducts(const StreamStep& a, const StreamPlan& at, unsigned char* shared,
                            const Ring& ring)
      : a_(a),
        ring_(ring),
        panel_(reinterpret_cast<__nv_bfloat16*>(shared + at.panel)),
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
      publish(a_.x + t * a_.D + row, residual_[i], a_.epoch);
    }
  }

  // y = W norm(x) for the block's outputs.
  __device__ __forceinline__ void product(int which, const StreamShare& s, const float* norm,
                                          uint32_t epoch) {
    float* squares = squares_ + (which % 2) * kTokens * kStreamWarps;  // one may still be read
    const int pitch = s.panel * kPiece + kPanelPad;
    for (int group = 0; group < s.tiles; group += s.group_tiles) {
      const int tiles = min(s.group_tiles, s.tiles - group) * s.kinds;
      for (int panel = 0; panel < s.pieces; panel += s.panel) {
        const int pieces = min(s.panel, s.pieces - panel);
        if (group + panel > 0) stream_sync();  // nobody still reads what is written next
        if (group == 0 || s.panel < s.pieces) {
          gather(s, norm, squares, epoch, panel * kPiece, pieces * kPiece, pitch);
          stream_sync();
        }
        add_stages(s, tiles, panel, pieces, pitch);
      }
      stream_sync();
      finish(which, s, squares, group, tiles, which == kDown ? epoch + 1 : epoch);
    }
  }

 private:
  // Takes a panel of activations of all tokens, times the norm's weight, into shared memory, and
  // adds up the squares of the plain values by warps. Everything is asked for before the first
  // value is waited for.
  __device__ __forceinline__ void gather(const StreamShare& s, const float* norm, float* squares,
                                         uint32_t epoch, int first, int width, int pitch) {
    constexpr int kVectors = kTokens == 1 ? 6 : kTokens == 2 ? 3 : 2;
    constexpr int kStride = kStreamThreads * 4;
    const int there = s.cols - first;  // zeros behind them
    float sums[kTokens] = {};
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
      __nv_bfloat16* to = panel_ + begin;
#pragma unroll
      for (int n = 0; n < kVectors * kTokens; ++n) {
        const int i = n / kTokens, t = n % kTokens;
        if (begin + i * kStride >= width) break;
        const float4 x = values_of(seen[n]);
        sums[t] += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        const uint2 front = split_pair(x.x * weight[i].x, x.y * weight[i].y);
        const uint2 back = split_pair(x.z * weight[i].z, x.w * weight[i].w);
        __nv_bfloat16* high = to + 2 * t * pitch + i * kStride;
        *reinterpret_cast<uint2*>(high) = make_uint2(front.x, back.x);
        *reinterpret_cast<uint2*>(high + pitch) = make_uint2(front.y, back.y);
      }
    }
    if (s.eps < 0) return;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = warp_sum(sums[t]);
      float& total = squares[t * kStreamWarps + warp_];
      if (lane_ == 0) total = first > 0 ? total + sum : sum;
    }
  }

  // This warp's stages of a group of tiles and a panel: every kStreamWarps-th. Their sums go to
  // partial_[tile][piece][token][row].
  __device__ __forceinline__ void add_stages(const StreamShare& s, int tiles, int panel, int pieces,
                                             int pitch) {
    const int j = lane_ % 4, row = (lane_ / 4 % 2) * 4 + lane_ / 8;
    const __nv_bfloat16* x = panel_ + lane_ / 4 % (2 * kTokens) * pitch + j * 8;
    int tile = place_, piece = 0;
    const int count = tiles * pieces;
    for (; place_ < count; place_ += kStreamWarps, tile += kStreamWarps) {
      while (tile >= tiles) tile -= tiles, ++piece;
      const float4 sum = multiply(x + piece * kPiece, row, j, s.tile_rows);
      if (j >= kTokens) continue;
      float* to = partial_ + (((tile * s.pieces + panel + piece) * kTokens) + j) * kTileRows + row;
      to[0] = sum.x + sum.y;
      to[8] = sum.z + sum.w;
    }
    place_ -= count;
  }

  // This warp's next stage times the activations at `x`. The weights are the tensor cores' left
  // operand; of the right one, columns 2 t and 2 t + 1 are the high and low halves of token t, and
  // others repeat these. A lane reads 8 columns of 32 at a time of rows `row` and 8 + `row`, in an
  // order of rows that finds 8 lanes in different banks; rows past the tile's are of no use.
  // Returns the sums of columns 2 j and 2 j + 1 of the product for the two rows.
  __device__ __forceinline__ float4 multiply(const __nv_bfloat16* x, int row, int j, int rows) {
    Barrier{ring_.full + ring_.slot}.wait(ring_.parity);
    const unsigned char* stage = ring_.stages + ring_.slot * kStageBytes;
    float d[2][4] = {};
#pragma unroll 4
    for (int block = 0; block < kPiece / kBoxColumns; ++block) {
      const int line = block * rows + row;
      const unsigned char* w = stage + line * 128 + ((j ^ (line & 3)) * 16);
      const int far = (line & 4) * 16;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = (half * 64) ^ far;
        const uint4 upper = *reinterpret_cast<const uint4*>(w + at);
        const uint4 lower = *reinterpret_cast<const uint4*>(w + at + 8 * 128);
        const uint4 b = *reinterpret_cast<const uint4*>(x + block * kBoxColumns + half * 32);
        mma({upper.x, lower.x, upper.y, lower.y}, b.x, b.y, d[0]);
        mma({upper.z, lower.z, upper.w, lower.w}, b.z, b.w, d[1]);
      }
    }
    __syncwarp();
    if (lane_ == 0) Barrier{ring_.empty + ring_.slot}.arrive();
    ring_.advance(kStreamWarps);
    return make_float4(d[0][0] + d[1][0], d[0][1] + d[1][1], d[0][2] + d[1][2], d[0][3] + d[1][3]);
  }

  // Adds up the sums of pieces of a group of tiles and hands the outputs on.
  __device__ __forceinline__ void finish(int which, const StreamShare& s, const float* squares,
                                         int group, int tiles, uint32_t epoch) {
    const bool gated = s.kinds == 2;
    const int begin = group * s.tile_rows;
    const int rows = min((gated ? tiles / 2 : tiles) * s.tile_rows, s.count - begin);
    const int of_tile = s.pieces * kTokens * kTileRows;
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * a_.T; i += kStreamThreads) {
      const int t = i / rows, row = begin + i % rows;
      const int tile = row / s.tile_rows;
      const float* from =
          partial_ + (tile - group) * s.kinds * of_tile + t * kTileRows + (row - s.begin_of(tile));
      const float sum = of_pieces(from, s.pieces);
      const float up = gated ? of_pieces(from + of_tile, s.pieces) : 0;
      float scale = 1;
      if (s.eps >= 0) {  // the norm's scale commutes with the product
        scale = rsqrtf(folded(squares + t * kStreamWarps) * s.inverse_cols + s.eps);
      }
      float y = sum * scale;
      if (which == kGateUp) y = silu(y) * (up * scale);
      if (which == kOut || which == kDown) y = residual_[t * s.count + row] += y;
      float* to = s.output + int64_t{t} * s.outputs + s.first + row;
      if (which == kHead) {
        *to = y;
      } else {
        publish(to, y, epoch);
      }
    }
  }

  __device__ __forceinline__ float of_pieces(const float* from, int pieces) const {
    float sum = 0;
#pragma unroll 4
    for (int piece = 0; piece < pieces; ++piece) sum += from[piece * kTokens * kTileRows];
    return sum;
  }

  const StreamStep& a_;
  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;
  int place_ = warp_;  // of this warp's next stage among those to come
  Ring ring_;
  __nv_bfloat16* panel_;  // [T][high and low halves][columns + kPanelPad]
  float* partial_;        // see add_stages()
  float* squares_;        // [2][T][kStreamWarps]
  float* residual_;       // [T][outputs]
};

}  // namespace gsa::cuda
