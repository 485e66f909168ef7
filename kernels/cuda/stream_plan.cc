#include "kernels/cuda/stream_plan.h"

#include <algorithm>
#include <bit>
#include <cassert>

namespace gsa::cuda {
namespace {

// Bytes of copies under way: they keep memory busy, but delay what the blocks exchange, which
// counts less where the layer of a block has many. By measurement, of bfloat16 layers of 0.8, 1.2
// and 3.3 MB, and of small weights of 0.2 and 0.4 MB.
int under_way(int64_t layer_bytes, bool small) {
  if (layer_bytes >= int64_t{3} << 19) return 96 * 1024;
  if (layer_bytes >= int64_t{1} << 20) return 64 * 1024;
  return (small ? 40 : 48) * 1024;
}
// Small weights of a layer for a block beyond which the warps of several kernels widen them faster
// than the few of this one. By measurement, of layers of 0.4 and 0.6 million.
constexpr int64_t kManySmall = int64_t{1} << 19;

bool power_of_two(int n) { return n > 0 && std::has_single_bit(static_cast<unsigned>(n)); }

// Divides up to so many outputs into tiles of so many rows at most, equal ones if these come out
// even.
void set_tiles(StreamShare& share, int outputs, int rows) {
  share.most_tiles = ceil_div(outputs, rows);
  const int equal = ceil_div(outputs, share.most_tiles);
  share.tile_rows = equal * share.most_tiles == outputs ? equal : rows;
  share.rest_rows = outputs - (share.most_tiles - 1) * share.tile_rows;
}

StreamShare make_share(const StreamStep& s, int which, int blocks) {
  StreamShare share{};
  const bool small = is_quantized(s.type) && which != kApart;
  const int gates = s.G * s.M, width = s.H * s.K + s.G * (s.K + s.V) + gates;
  const int apart = is_quantized(s.type) ? gates : 0;
  share.gated = which == kGateUp;
  share.eps = which == kOut ? s.output_eps : which == kDown ? -1 : s.eps;
  const int outputs[] = {width - apart, apart, s.D, s.F, s.D, s.N};
  const float* const inputs[] = {s.x, s.x, s.mixed, s.y, s.hidden, s.x};
  float* const results[] = {s.qkvf, s.qkvf + (width - apart), s.y, s.hidden, s.x, s.logits};
  const int cols[] = {s.D, s.D, s.H * s.V, s.D, s.F, s.D};
  share.input = inputs[which];
  share.output = results[which];
  share.outputs = outputs[which];
  share.stride = which == kQkvf || which == kApart ? width : share.outputs;
  share.cols = cols[which];
  share.inverse_cols = 1.0f / static_cast<float>(share.cols);
  share.pieces = ceil_div(share.cols, kPiece);
  const int room = is_quantized(s.type) ? 2 * kPanelBytes : kPanelBytes;
  share.panel = std::clamp(room / (4 * stream_width(s.T) * kPiece), 1, share.pieces);
  share.grain = small ? SmallTile::kRows : 1;
  share.kinds = share.gated && !small ? 2 : 1;
  const int most = std::max(ceil_div(share.outputs, blocks), 1);
  if (small) {
    share.tile_rows = share.gated ? SmallTile::kRows : kTileRows;
    share.most_tiles = ceil_div(most, SmallTile::kRows);  // no block has so many of them
    share.rest_rows = share.tile_rows;
  } else {
    set_tiles(share, most, std::min(kTileRows, stage_bytes(s.type) / (kPiece * 2)));
  }
  share.inverse_tile_rows = 1.0f / static_cast<float>(share.tile_rows);
  return share;
}

bool splits_well(const StreamStep& s, int splits) {
  const int v_columns = s.V / splits;
  return s.K % (4 * splits) == 0 && s.V % (4 * splits) == 0 && power_of_two(v_columns) &&
         v_columns <= kStreamThreads * 4;
}

bool has_shape(const StreamStep& s, int blocks) {
  const int queries = s.H / s.G;
  // Every block must take part in the products whose waiting makes it safe to use a buffer again.
  const int least = blocks * (is_quantized(s.type) ? SmallTile::kRows : 1);
  return s.D >= least && s.F >= least && s.T <= kStreamTokens && s.D % 64 == 0 && s.F % 64 == 0 &&
         s.H * s.V % 64 == 0 && power_of_two(s.M) && s.M >= 8 && s.M <= kMostSlots &&
         power_of_two(queries) && queries <= kMostQueries && queries * s.M <= kStreamThreads * 4 &&
         s.map != FeatureMap::kT2R && splits_well(s, 1);
}

// Sets all offsets but the ring's share of them.
void lay_out(const StreamStep& s, int blocks, StreamPlan& plan) {
  const int tokens = stream_width(s.T), queries = s.H / s.G;
  const bool digits = as_digits(s.type, tokens);
  int digit_bytes = 0, panel = 0, panel_sums = 0;
  // Of the recurrence: two sets of sums over slots, or one over values.
  int partial = queries * std::max(2 * s.M, plan.v_columns) * kStreamWarps;
  for (StreamShare& share : plan.shares) {
    share.take(blocks - 1, blocks, tokens);  // the last block has the most
    if (digits) {
      digit_bytes = std::max(digit_bytes, digits_bytes(s.type, tokens, share.panel * kPieceTiles));
    }
    if (!digits || &share == &plan.shares[kApart]) {
      panel = std::max(panel, (share.panel * kPiece + kPanelPad) * tokens);
      panel_sums = std::max(panel_sums, 2 * (share.panel * kPiece / 32 + kSumsPad) * tokens);
    }
    // They are added up together.
    if (&share == &plan.shares[kApart]) share.partial = plan.shares[kQkvf].sums(tokens);
    partial = std::max(partial, share.partial + share.sums(tokens));
  }
  int end = plan.ring * stage_bytes(s.type);
  const auto take = [&end](size_t bytes) {
    const int at = end;
    end = ceil_div(end + static_cast<int>(bytes), 16) * 16;
    return at;
  };
  plan.digits = take(digit_bytes);
  plan.panel = take(panel * sizeof(float));
  plan.panel_sums = take(s.type == DType::kQ4 && !digits ? panel_sums * sizeof(float) : 0);
  plan.partial = take(partial * sizeof(float));
  plan.mix = take(((1 + queries) * s.M + plan.inputs) * sizeof(float));
  plan.squares = take(tokens * kStreamWarps * sizeof(float));
  plan.residual = take(tokens * plan.shares[kDown].count * sizeof(float));
  plan.table = take(sizeof(plan.shares));
  plan.layers = take((s.layer_count + 1) * sizeof(StreamLayer));
  plan.unit_table = take(plan.block_units * sizeof(StreamUnit));
  plan.input_table = take(plan.block_units * plan.inputs * sizeof(int));
  plan.barriers = take(3 * kStageMost * sizeof(uint64_t));
  plan.bytes = end;
}

}  // namespace

std::optional<StreamPlan> plan_stream(const Launch& how, const StreamStep& s) {
  if (!how.clusters || !has_shape(s, how.multiprocessors)) return std::nullopt;
  StreamPlan plan{};
  for (int which = kQkvf; which <= kHead; ++which) {
    plan.shares[which] = make_share(s, which, how.multiprocessors);
  }
  plan.splits = 1;
  for (int splits = 2; splits <= kMostSplits; splits *= 2) {
    if (s.T * s.G * splits <= how.multiprocessors && s.K / splits >= 16 && splits_well(s, splits)) {
      plan.splits = splits;
    }
  }
  plan.units = s.T * s.G * plan.splits;
  plan.k_rows = s.K / plan.splits;
  plan.v_columns = s.V / plan.splits;
  plan.block_units = ceil_div(plan.units, how.multiprocessors);
  plan.inputs = s.M + (1 + s.H / s.G) * plan.k_rows + plan.v_columns;
  lay_out(s, how.multiprocessors, plan);
  const StreamShare& qkvf = plan.shares[kQkvf];
  // The rows apart go with what is there.
  if (is_quantized(s.type) && (qkvf.group_tiles < qkvf.tiles || qkvf.panel < qkvf.pieces)) {
    return std::nullopt;
  }
  const int room = static_cast<int>(how.shared_limit) - plan.bytes;
  const int stage = stage_bytes(s.type);
  const int lanes = copy_lanes(s.type);
  plan.ring = std::min(room / stage, kStageMost) / lanes * lanes;
  if (plan.ring < kStreamWarps) return std::nullopt;
  const int64_t layer = int64_t{s.D} * (plan.shares[kQkvf].outputs + s.H * s.V + 3 * s.F);
  if (is_quantized(s.type) && layer / how.multiprocessors > kManySmall) return std::nullopt;
  const int64_t layer_bytes = layer * stage / (kTileRows * kPiece) / how.multiprocessors;
  plan.flight = ceil_div(under_way(layer_bytes, is_quantized(s.type)) / stage, lanes) * lanes;
  assert(plan.flight <= 2 * plan.ring);  // further back a phase could be mistaken for another
  lay_out(s, how.multiprocessors, plan);
  return plan;
}

StreamBuffers stream_buffers(const StreamStep& s) {
  const int64_t T = s.T;
  return {.x = T * s.D * kReplicas,
          .qkvf = T * (s.H * s.K + s.G * (s.K + s.V + s.M)),
          .scores = T * s.H * kMostSplits * s.M,
          .mixed = T * s.H * s.V * kReplicas,
          .y = T * s.D * kReplicas,
          .hidden = T * s.F * kReplicas};
}

}  // namespace gsa::cuda
