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
        panel_(reinterpret_cast<float*>(shared + at.panel)),
        partial_(reinterpret_cast<float*>(shared + at.partial)),
        squares_(reinterpret_cast<float*>(shared + at.squares)),
        residual_(reinterpret_cast<float*>(shared + at.residual)) {}

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
    for (int group = 0; group < s.tiles; group += s.group_tiles) {
      const int tiles = min(s.group_tiles, s.tiles - group) * s.kinds;
      for (int panel = 0; panel < s.cols; panel += s.panel) {
        const int width = min(s.panel, s.cols - panel);
        if (group + panel > 0) stream_sync();  // nobody still reads what is written next
        if (group == 0 || s.panel < s.cols) {
          gather(s, norm, squares, epoch, panel, width);
          stream_sync();
        }
        add_tiles(s, tiles, panel, width);
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
                                         uint32_t epoch, int first, int width) {
    constexpr int kVectors = kTokens == 1 ? 6 : kTokens == 2 ? 3 : 2;
    constexpr int kStride = kStreamThreads * 4;
    const int pitch = width + kPanelPad;
    float sums[kTokens] = {};
#pragma unroll 1
    for (int begin = threadIdx.x * 4; begin < width; begin += kVectors * kStride) {
      float4 weight[kVectors];
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        weight[i] = make_float4(1, 1, 1, 1);
        if (norm != nullptr && begin + i * kStride < width) {
          weight[i] = load4(norm + first + begin + i * kStride);
        }
      }
      const float* input = s.input + first + begin;
      uint4 seen[kVectors * kTokens];
      receive_all(
          seen, epoch,
          [&](int n) { return begin + n / kTokens * kStride < width && n % kTokens < a_.T; },
          [&](int n) { return input + n % kTokens * s.cols + n / kTokens * kStride; });
      float* to = panel_ + begin;
#pragma unroll
      for (int n = 0; n < kVectors * kTokens; ++n) {
        const int i = n / kTokens, t = n % kTokens;
        if (begin + i * kStride >= width) break;
        if (t >= a_.T) continue;
        const float4 x = values_of(seen[n]);
        sums[t] += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
        const uint2 front = split_pair(x.x * weight[i].x, x.y * weight[i].y);
        const uint2 back = split_pair(x.z * weight[i].z, x.w * weight[i].w);
        *reinterpret_cast<uint4*>(to + t * pitch + i * kStride) =
            make_uint4(front.x, front.y, back.x, back.y);
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

  // The products of a group of tiles with the panel, added up by warps in
  // partial_[tile][token][row][warp]. Activations are the tensor cores' left operand: the halves
  // of tokens of higher value are its rows 0 to 7, the lower ones rows 8 to 15; rows past the
  // tokens repeat the last, and their sums are of no use.
  __device__ __forceinline__ void add_tiles(const StreamShare& s, int tiles, int first, int width) {
    const int g = lane_ / 4, j = lane_ % 4, column = warp_ * kUnit + j * 8;
    const float* x = panel_ + min(g, a_.T - 1) * (width + kPanelPad) + column;
    const unsigned char* w = ring_.stages + g * kStagePitch + column * 2;
    float* partial = partial_ + (g * kTileRows + 2 * j) * kStreamWarps + warp_;
#pragma unroll 1
    for (int piece = 0; piece < width; piece += s.piece, x += s.piece) {
      const int grains = min(s.piece, width - piece) / kGrain;
      uint4 left[kPieceGrains][2];
#pragma unroll
      for (int i = 0; i < kPieceGrains; ++i) {
        if (i == grains) break;
        left[i][0] = *reinterpret_cast<const uint4*>(x + i * kGrain);
        left[i][1] = *reinterpret_cast<const uint4*>(x + i * kGrain + 4);
      }
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        const float2 sum = multiply(w, left, grains);
        if (g >= kTokens) continue;
        float* to = partial + tile * kTokens * kTileRows * kStreamWarps;
        const bool more = first + piece > 0;
        to[0] = sum.x + (more ? to[0] : 0.0f);
        to[kStreamWarps] = sum.y + (more ? to[kStreamWarps] : 0.0f);
      }
    }
  }

  // This warp's part of the next stage times the activations: of token lane / 4, and of the rows
  // 2 (lane % 4) and the one after it.
  __device__ __forceinline__ float2 multiply(const unsigned char* w,
                                             const uint4 (&left)[kPieceGrains][2], int grains) {
    Barrier{ring_.full + ring_.slot}.wait(ring_.parity);
    w += ring_.slot * kStageBytes;
    uint4 weights[kPieceGrains];
#pragma unroll
    for (int i = 0; i < kPieceGrains; ++i) {
      if (i == grains) break;
      weights[i] = *reinterpret_cast<const uint4*>(w + i * kGrain * 2);
    }
    float d[4][4] = {};
#pragma unroll
    for (int i = 0; i < kPieceGrains; ++i) {
      if (i == grains) break;
      mma(left[i][0], weights[i].x, weights[i].y, d[i % 2 * 2]);
      mma(left[i][1], weights[i].z, weights[i].w, d[i % 2 * 2 + 1]);
    }
    __syncwarp();
    if (lane_ == 0) Barrier{ring_.empty + ring_.slot}.arrive();
    ring_.advance(1);
    float2 sum = make_float2(0, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum.x += d[i][0] + d[i][2], sum.y += d[i][1] + d[i][3];
    return sum;
  }

  // Adds up the warps' sums of a group of tiles and hands the outputs on.
  __device__ __forceinline__ void finish(int which, const StreamShare& s, const float* squares,
                                         int group, int tiles, uint32_t epoch) {
    constexpr int kTileSums = kTileRows * kTokens;
    const int outputs = s.count - group * kTileRows;
    const bool gated = s.kinds == 2;
#pragma unroll 1
    for (int i = threadIdx.x; i < (gated ? tiles / 2 : tiles) * kTileSums; i += kStreamThreads) {
      const int tile = i / kTileSums, t = i % kTileSums / kTileRows;
      const int r = tile * kTileRows + i % kTileRows;
      if (r >= outputs || t >= a_.T) continue;
      const float* from = partial_ + (tile * s.kinds * kTileSums + i % kTileSums) * kStreamWarps;
      const float sum = folded(from);
      const float up = gated ? folded(from + kTileSums * kStreamWarps) : 0;
      float scale = 1;
      if (s.eps >= 0) {  // the norm's scale commutes with the product
        scale = rsqrtf(folded(squares + t * kStreamWarps) * s.inverse_cols + s.eps);
      }
      float y = sum * scale;
      const int row = group * kTileRows + r;
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

  const StreamStep& a_;
  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;
  Ring ring_;
  float* panel_;     // [T][columns + kPanelPad]; of two columns the high halves, then the low ones
  float* partial_;   // see add_tiles()
  float* squares_;   // [2][T][kStreamWarps]
  float* residual_;  // [T][outputs]
};

}  // namespace gsa::cuda
