#include "kernels/cuda/stream_step.cuh"

#include <algorithm>
#include <cassert>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/stream_exchange.cuh"

// A block owns a share of the outputs of every product. One warp copies the weights of that share,
// in the order of their use over the whole step, into a ring of stages in shared memory, and waits
// for nothing but free stages: memory stays busy while the other warps wait for the activations
// that other blocks publish.
//
// A step runs through all of the code once a layer, at the speed of the instruction cache: products
// are one loop over a table, the two memories one loop over two, and little is unrolled.
namespace gsa::cuda {
namespace {

struct Ring {
  unsigned char* stages;
  uint64_t* full;
  uint64_t* empty;
  int size;
  int slot = 0;
  uint32_t parity = 0;

  // REQUIRES: stages <= size
  __device__ void advance(int stages) {
    slot += stages;
    if (slot >= size) slot -= size, parity ^= 1;
  }
};

// What all warps of a block find in shared memory.
struct Tables {
  const StreamShare* shares;  // [kHead + 1]
  const StreamLayer* layers;  // [layer_count + 1]
  const StreamUnit* units;    // [block_units]
  const int* inputs;          // [block_units][inputs], offsets in qkvf

  // Calls product(which, share, layer index) for every product of a step in order.
  template <typename Product>
  __device__ __forceinline__ void for_products(int layer_count, const Product& product) const {
    const int count = layer_count * kLayerProducts;
#pragma unroll 1
    for (int i = 0; i <= count; ++i) {
      const int which = i == count ? kHead : i % kLayerProducts;
      product(which, shares[which], i / kLayerProducts);
    }
  }
};

__device__ __forceinline__ int log2_of(int power) { return 31 - __clz(power); }

// Fills in a block's unit number `i` and where in qkvf its inputs are; by all threads of a warp.
__device__ void find_unit(const StreamStep& a, const StreamPlan& plan, int i, StreamUnit& unit,
                          int* inputs) {
  const int index = blockIdx.x + i * gridDim.x;
  if (index >= plan.units) return;
  const int head = index / plan.splits, split = index % plan.splits;
  const int g = head % a.G, queries = a.H / a.G;
  const DecodeRow sequence = a.rows[head / a.G];
  if (threadIdx.x % 32 == 0) {
    const int64_t state = sequence.state * a.state_stride;
    unit = {.hk = state + (g * a.K + split * plan.k_rows) * a.M,
            .hv = state + g * a.M * a.V + split * plan.v_columns,
            .scores = head * plan.splits * queries * a.M,
            .split = split,
            .out = (sequence.row * a.H + g * queries) * a.V + split * plan.v_columns};
  }
  const int row = sequence.row * plan.shares[kQkvf].outputs;
#pragma unroll 1
  for (int n = threadIdx.x % 32; n < plan.inputs; n += 32) {
    int c = n - a.M;
    if (c < 0) {
      inputs[n] = row + (a.H + a.G) * a.K + a.G * a.V + g * a.M + n;
    } else if (c < plan.k_rows) {
      inputs[n] = row + (a.H + g) * a.K + split * plan.k_rows + c;
    } else if (c < (1 + queries) * plan.k_rows) {
      c -= plan.k_rows;
      inputs[n] =
          row + (g * queries + c / plan.k_rows) * a.K + split * plan.k_rows + c % plan.k_rows;
    } else {
      c -= (1 + queries) * plan.k_rows;
      inputs[n] = row + (a.H + a.G) * a.K + g * a.V + split * plan.v_columns + c;
    }
  }
}

// ---- The warps that copy ----

class Producer {
 public:
  __device__ Producer(const StreamStep& a, const StreamPlan& plan, const Tables& tables,
                      const Ring& ring)
      : a_(a), plan_(plan), tables_(tables), ring_(ring), landed_(ring), policy_(drop_first()) {
    landed_.advance(member_);
  }

  __device__ void run() {
    tables_.for_products(a_.layer_count, [&](int which, const StreamShare& share, int layer) {
      if (which == kQkvf) prefetch_layer(tables_.layers[layer]);
      stream(share, tables_.layers[layer].weight[which % kLayerProducts]);
    });
  }

 private:
  __device__ __forceinline__ void stream(const StreamShare& s, const __nv_bfloat16* weight) {
    weight += int64_t{s.first} * s.cols;
#pragma unroll 1
    for (int group = 0; group < s.tiles; group += s.group_tiles) {
      const int end = min(group + s.group_tiles, s.tiles) * s.kinds;
#pragma unroll 1
      for (int panel = 0; panel < s.cols; panel += s.panel) {
        const int panel_end = min(panel + s.panel, s.cols);
#pragma unroll 1
        for (int column = panel; column < panel_end; column += s.piece) {
          const uint32_t bytes = min(s.piece, panel_end - column) * 2;
#pragma unroll 1
          for (int tile = group * s.kinds; tile < end; ++tile) {
            if (my_turn()) copy(s, weight + column, tile, bytes);
            ring_.advance(1);
          }
        }
      }
    }
  }

  // The warps take the stages in turn.
  __device__ __forceinline__ bool my_turn() const { return ring_.slot % kCopyWarps == member_; }

  // A stage: `bytes` of each row of a tile, from the column that `weight` points to.
  __device__ __forceinline__ void copy(const StreamShare& s, const __nv_bfloat16* weight, int tile,
                                       uint32_t bytes) {
    const int begin = (s.kinds == 2 ? tile / 2 : tile) * kTileRows;
    const int rows = min(kTileRows, s.count - begin);
    const __nv_bfloat16* from =
        weight + int64_t{begin + (s.kinds == 2 && tile % 2 == 1 ? s.outputs : 0)} * s.cols;
    if (under_way_ == plan_.flight) {
      Barrier{ring_.full + landed_.slot}.wait(landed_.parity);
      landed_.advance(kCopyWarps);
      --under_way_;
    }
    ++under_way_;
    const Barrier full{ring_.full + ring_.slot};
    Barrier{ring_.empty + ring_.slot}.wait(ring_.parity ^ 1);
    if (lane_ == 0) full.arrive_and_expect(bytes * rows);
    __syncwarp();
    if (lane_ < rows) {
      copy_bulk(ring_.stages + ring_.slot * kStageBytes + lane_ * kStagePitch,
                from + int64_t{lane_} * s.cols, bytes, full, policy_);
    }
  }

  // What the layer needs besides weights, asked for a little before its use.
  __device__ __forceinline__ void prefetch_layer(const StreamLayer& layer) {
    const int lane = member_ * 32 + lane_;
#pragma unroll 1
    for (int which = kQkvf; which < kLayerProducts; ++which) {
      const int at = (blockIdx.x + gridDim.x * lane) * 32;
      if (layer.norm[which] != nullptr && at < tables_.shares[which].cols) {
        prefetch(layer.norm[which] + at);
      }
    }
#pragma unroll 1
    for (int i = 0; blockIdx.x + i * gridDim.x < plan_.units; ++i) {
      const float* hk = layer.hk + tables_.units[i].hk;
      for (int at = lane * 32; at < plan_.k_rows * a_.M; at += kCopyWarps * 32 * 32) {
        prefetch(hk + at);
      }
      const float* hv = layer.hv + tables_.units[i].hv;
      for (int m = lane; m < a_.M; m += kCopyWarps * 32) {
        for (int at = 0; at < plan_.v_columns; at += 32) prefetch(hv + m * a_.V + at);
      }
    }
  }

  const StreamStep& a_;
  const StreamPlan& plan_;
  const Tables tables_;
  Ring ring_, landed_;
  const int member_ = threadIdx.x / 32 - kStreamWarps, lane_ = threadIdx.x % 32;
  int under_way_ = 0;
  uint64_t policy_;
};

// ---- The warps that compute ----

__device__ __forceinline__ void sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kStreamThreads) : "memory");
}

__device__ __forceinline__ void mma(const uint4& a, uint32_t b0, uint32_t b1, float (&d)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float4 load4(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ __forceinline__ float sum_of(const float4& v) { return (v.x + v.y) + (v.z + v.w); }

// {bfloat16 x, y rounded} as one word, and what the rounding left as another.
__device__ __forceinline__ uint2 split_pair(float x, float y) {
  const __nv_bfloat162 high = __floats2bfloat162_rn(x, y);
  const __nv_bfloat162 low = __floats2bfloat162_rn(x - __low2float(high), y - __high2float(high));
  return make_uint2(*reinterpret_cast<const uint32_t*>(&high),
                    *reinterpret_cast<const uint32_t*>(&low));
}

// Adds up vectors of 4 columns over the threads of a warp that agree in threadIdx.x modulo
// 2^shift, and leaves what is left to add as sums[columns][kStreamWarps].
__device__ __forceinline__ void fold(float4 v, int shift, float* sums) {
#pragma unroll 1
  for (int offset = 16; offset >> shift > 0; offset /= 2) {
    v.x += __shfl_xor_sync(kAllLanes, v.x, offset);
    v.y += __shfl_xor_sync(kAllLanes, v.y, offset);
    v.z += __shfl_xor_sync(kAllLanes, v.z, offset);
    v.w += __shfl_xor_sync(kAllLanes, v.w, offset);
  }
  const int span = max(shift, 5), lane = threadIdx.x & ((1 << span) - 1);
  if (lane >> shift > 0) return;
#pragma unroll 1
  for (int row = threadIdx.x >> span; row < kStreamWarps; row += kStreamThreads >> span) {
    float* to = sums + lane * 4 * kStreamWarps + row;
    to[0] = v.x, to[kStreamWarps] = v.y, to[2 * kStreamWarps] = v.z, to[3 * kStreamWarps] = v.w;
    v = make_float4(0, 0, 0, 0);  // where there are fewer rows than warps
  }
}
__device__ __forceinline__ float folded(const float* sums) {
  return sum_of(load4(sums)) + sum_of(load4(sums + 4));
}

template <int kTokens>
class Consumer {
 public:
  __device__ Consumer(const StreamStep& a, const StreamPlan& at, unsigned char* shared,
                      const Tables& tables, const Ring& ring)
      : a_(a),
        plan_(at),
        tables_(tables),
        ring_(ring),
        panel_(reinterpret_cast<float*>(shared + at.panel)),
        partial_(reinterpret_cast<float*>(shared + at.partial)),
        mix_(reinterpret_cast<float*>(shared + at.mix)),
        squares_(reinterpret_cast<float*>(shared + at.squares)),
        residual_(reinterpret_cast<float*>(shared + at.residual)) {}

  __device__ void run() {
    embed(tables_.shares[kDown]);
    tables_.for_products(a_.layer_count, [&](int which, const StreamShare& share, int l) {
      const StreamLayer& layer = tables_.layers[l];
      product(which, share, layer.norm[which % kLayerProducts], a_.epoch + l);
      if (which == kQkvf) {
#pragma unroll 1
        for (int i = 0; blockIdx.x + i * gridDim.x < plan_.units; ++i) {
          mix(layer, a_.epoch + l, tables_.units[i], tables_.inputs + i * plan_.inputs);
        }
      }
    });
  }

 private:
  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;

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
        if (group + panel > 0) sync();  // nobody still reads what is written next
        if (group == 0 || s.panel < s.cols) {
          gather(s, norm, squares, epoch, panel, width);
          sync();
        }
        add_tiles(s, tiles, panel, width);
      }
      sync();
      finish(which, s, squares, group, tiles, which == kDown ? epoch + 1 : epoch);
    }
  }

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

  __device__ __forceinline__ void mix(const StreamLayer& layer, uint32_t epoch,
                                      const StreamUnit& unit, const int* inputs);
  __device__ __forceinline__ void softmax(float* scores, uint32_t epoch, float* sums, float* p);

  static constexpr int kHeld = kTokens <= 2 ? 2 : 4;  // vectors that a thread holds at a time

  const StreamStep& a_;
  const StreamPlan& plan_;
  const Tables tables_;
  Ring ring_;
  float* panel_;     // [T][columns + kPanelPad]; of two columns the high halves, then the low ones
  float* partial_;   // see add_tiles()
  float* mix_;       // see mix()
  float* squares_;   // [2][T][kStreamWarps]
  float* residual_;  // [T][outputs]
};

// The vectors of a unit's part of a memory, of which a thread has every kStreamThreads-th.
struct Part {
  float* at;
  int shift;  // base 2 logarithm of the vectors of a row
  int count;  // of all rows
  int pitch;

  __device__ __forceinline__ int lanes() const { return 1 << shift; }
  __device__ __forceinline__ int column() const { return (threadIdx.x & (lanes() - 1)) * 4; }
  __device__ __forceinline__ float* vector(int i) const {
    return at + (i >> shift) * pitch + column();
  }
  template <int kHeld>
  __device__ __forceinline__ void load(int begin, float4 (&x)[kHeld]) const {
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      const int i = begin + threadIdx.x + n * kStreamThreads;
      if (i < count) x[n] = load4(vector(i));
    }
  }
};

__device__ __forceinline__ void multiply_add(float4& sum, float w, const float4& x) {
  sum.x += w * x.x, sum.y += w * x.y, sum.z += w * x.z, sum.w += w * x.w;
}

// The recurrence for a unit. Both memories change alike: x = x * keep + a (x) b, and are read by a
// weight for each row; of hk, rows are keys and columns slots, of hv the other way round.
template <int kTokens>
__device__ __forceinline__ void Consumer<kTokens>::mix(const StreamLayer& layer, uint32_t epoch,
                                                       const StreamUnit& unit, const int* inputs) {
  const int M = a_.M, queries = a_.H / a_.G, k_rows = plan_.k_rows, v_columns = plan_.v_columns;
  Part part{layer.hk + unit.hk, log2_of(M) - 2, k_rows * M / 4, M};
  const Part hv{layer.hv + unit.hv, log2_of(v_columns) - 2, M * v_columns / 4, a_.V};
  float4 held[kHeld], held_v[kHeld];
  part.load(0, held);
  hv.load(0, held_v);

  float* keep = mix_;            // [M]
  float* write = keep + M;       // [M]
  float* p = write + M;          // [queries][M]
  float* key = p + queries * M;  // [k_rows]
  float* query = key + k_rows;   // [queries][k_rows]
  float* value = query + queries * k_rows;
  const int q_end = M + (1 + queries) * k_rows;
#pragma unroll 1
  for (int i = threadIdx.x; i < plan_.inputs; i += kStreamThreads) {
    const float x = receive(a_.qkvf + inputs[i], epoch);
    if (i < M) {
      const float log_keep = log_gate(x, a_.inverse_normalizer);
      keep[i] = keep_of(log_keep);
      write[i] = write_of(log_keep);
    } else {
      key[i - M] = a_.map == FeatureMap::kRelu && i < q_end ? fmaxf(x, 0.0f) : silu(x);
    }
  }
  sync();

  float* sums = partial_;  // [queries][columns][kStreamWarps]
#pragma unroll 1
  for (int pass = 0;; ++pass) {
    const bool second = pass == 1;
    const float* by_row = second ? write : key;
    const float* weight = second ? p : query;
    const int weight_pitch = second ? M : k_rows;
    const float4 by_column = load4((second ? value : write) + part.column());
    float4 kept = load4(keep + (second ? 0 : part.column()));
    float4 totals[kMostQueries] = {};
#pragma unroll 1
    for (int begin = 0; begin < part.count; begin += kHeld * kStreamThreads) {
      if (begin > 0) part.load(begin, held);
#pragma unroll
      for (int n = 0; n < kHeld; ++n) {
        const int i = begin + threadIdx.x + n * kStreamThreads;
        if (i >= part.count) break;
        const int row = i >> part.shift;
        if (second) kept = make_float4(keep[row], keep[row], keep[row], keep[row]);
        const float w = by_row[row];
        float4 x = held[n];
        x = make_float4(x.x * kept.x + w * by_column.x, x.y * kept.y + w * by_column.y,
                        x.z * kept.z + w * by_column.z, x.w * kept.w + w * by_column.w);
        *reinterpret_cast<float4*>(part.vector(i)) = x;
#pragma unroll
        for (int h = 0; h < kMostQueries; ++h) {
          if (h < queries) multiply_add(totals[h], weight[h * weight_pitch + row], x);
        }
      }
    }
#pragma unroll 1
    for (int h = 0; h < queries; ++h) {
      fold(totals[0], part.shift, sums + (h << part.shift) * 4 * kStreamWarps);
#pragma unroll
      for (int i = 1; i < kMostQueries; ++i) totals[i - 1] = totals[i];
    }
    sync();
    if (second) break;
    float* scores = a_.scores + unit.scores;
#pragma unroll 1
    for (int i = threadIdx.x; i < queries * M; i += kStreamThreads) {
      publish(scores + unit.split * queries * M + i, folded(sums + i * kStreamWarps), epoch);
    }
    softmax(scores, epoch, sums + queries * M * kStreamWarps, p);
    part = hv;
#pragma unroll
    for (int n = 0; n < kHeld; ++n) held[n] = held_v[n];
  }
  float* out = a_.mixed + unit.out;
#pragma unroll 1
  for (int i = threadIdx.x; i < queries * v_columns; i += kStreamThreads) {
    const int h = i >> (hv.shift + 2), c = i & (v_columns - 1);
    publish(out + h * a_.V + c, silu(folded(sums + i * kStreamWarps)), epoch);
  }
}

// Every unit of a head adds up the shares of all and has the whole softmax: a warp for each query.
template <int kTokens>
__device__ __forceinline__ void Consumer<kTokens>::softmax(float* scores, uint32_t epoch,
                                                           float* sums, float* p) {
  const int M = a_.M, queries = a_.H / a_.G;
  const int share = queries * M / 4, shares = plan_.splits * share;
  float4 total = {};
#pragma unroll 1
  for (int begin = threadIdx.x; begin < shares; begin += kHeld * kStreamThreads) {
    uint4 seen[kHeld];
    const float* from = scores + begin * 4;
    receive_all(
        seen, epoch, [&](int n) { return begin + n * kStreamThreads < shares; },
        [&](int n) { return from + n * kStreamThreads * 4; });
#pragma unroll
    for (int n = 0; n < kHeld; ++n) {
      if (begin + n * kStreamThreads < shares) multiply_add(total, 1.0f, values_of(seen[n]));
    }
  }
  fold(total, log2_of(share), sums);
  sync();
  if (warp_ < queries) {
    float* mine = p + warp_ * M;
    float most = -INFINITY, sum = 0;
#pragma unroll 1
    for (int m = lane_; m < M; m += 32) {
      mine[m] = folded(sums + (warp_ * M + m) * kStreamWarps);
      most = fmaxf(most, mine[m]);
    }
    most = warp_max(most);
#pragma unroll 1
    for (int m = lane_; m < M; m += 32) sum += mine[m] = expf(mine[m] - most);
    const float scale = __fdividef(1.0f, warp_sum(sum));
#pragma unroll 1
    for (int m = lane_; m < M; m += 32) mine[m] *= scale;
  }
  sync();
}

template <int kTokens>
__global__ void __launch_bounds__(kStreamThreads + kCopyWarps * 32, 1)
    stream_step_kernel(const __grid_constant__ StreamStep a,
                       const __grid_constant__ StreamPlan plan) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto* shares = reinterpret_cast<StreamShare*>(shared + plan.table);
  auto* layers = reinterpret_cast<StreamLayer*>(shared + plan.layers);
  auto* units = reinterpret_cast<StreamUnit*>(shared + plan.unit_table);
  auto* inputs = reinterpret_cast<int*>(shared + plan.input_table);
  auto* full = reinterpret_cast<uint64_t*>(shared + plan.barriers);
  const Ring ring{shared, full, full + kStageMost, plan.ring};
  const int thread = threadIdx.x;
  constexpr int kWords = sizeof(StreamLayer) / 8;
#pragma unroll 1
  for (int i = thread; i < (a.layer_count + 1) * kWords; i += blockDim.x) {
    reinterpret_cast<uint64_t*>(layers)[i] = reinterpret_cast<const uint64_t*>(a.layers)[i];
  }
  if (thread <= kHead) {
    shares[thread] = plan.shares[thread];
    shares[thread].take(blockIdx.x, gridDim.x, kTokens);
  }
  if (thread < plan.ring) {
    Barrier{ring.full + thread}.init(1);
    Barrier{ring.empty + thread}.init(kStreamWarps);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  grid_wait();
#pragma unroll 1
  for (int i = thread / 32; i < plan.block_units; i += blockDim.x / 32) {
    find_unit(a, plan, i, units[i], inputs + i * plan.inputs);
  }
  __syncthreads();
  const Tables tables{shares, layers, units, inputs};
  if (threadIdx.x >= kStreamThreads) {
    Producer(a, plan, tables, ring).run();
  } else {
    Consumer<kTokens>(a, plan, shared, tables, ring).run();
  }
}

}  // namespace

void run_stream(const Launch& how, const StreamStep& step, const StreamPlan& plan) {
  const auto kernel = step.T == 1   ? stream_step_kernel<1>
                      : step.T == 2 ? stream_step_kernel<2>
                                    : stream_step_kernel<4>;
  allow_shared_memory(kernel, plan.bytes);
  launch(how,
         {.blocks = static_cast<unsigned>(how.multiprocessors),
          .threads = kStreamThreads + kCopyWarps * 32,
          .shared_bytes = static_cast<size_t>(plan.bytes)},
         kernel, step, plan);
}

}  // namespace gsa::cuda
