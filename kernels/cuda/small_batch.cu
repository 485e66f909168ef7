#include "kernels/cuda/small_batch.cuh"

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <optional>

#include "kernels/cuda/dense_stream.cuh"
#include "kernels/cuda/small_batch_kernel.cuh"

namespace gsa::cuda {
namespace {

using namespace batch;

// How a product is divided.
struct Division {
  int splits = 1;  // blocks of a cluster
  int waves = 1;   // of clusters
  int block_pairs = 1, clusters = 1, teams = 1, slices = 1;
  int apart_block_pairs = 1, apart_clusters = 0;
  int work = 1;  // of a warp: pairs of tiles
  int tiles = 1, pitch = 0;
  size_t bytes = 0;  // of shared memory of a block
};

size_t room(const Launch& how) {
  return how.shared_limit - 1024;  // for the barriers
}

// Pairs of rows: of a weight, and apart.
struct Pairs {
  int small, apart;
};

// Clusters that run at a time, each multiprocessor with one of their blocks.
template <DType kType>
int slots_of(const Launch& how, unsigned splits) {
  static int known[kMostSplits + 1] = {};
  int& slots = known[splits];
  if (slots == 0) {
    allow_shared_memory(batch_kernel<kType, 2>, room(how));
    const int most = clusters_at_once({.blocks = splits * how.multiprocessors,
                                       .threads = kMostWarps * 32,
                                       .shared_bytes = room(how),
                                       .cluster = splits},
                                      batch_kernel<kType, 2>);
    slots = std::max(most, 1);
  }
  return slots;
}

template <DType kType>
Division divide(const Launch& how, const Pairs& pairs, int across, int tokens, int splits) {
  Division d{.splits = splits};
  constexpr int kDenseBytes = kPairRows * PairOf<kType>::kColumns * sizeof(__nv_bfloat16);
  const int slots = slots_of<kType>(how, splits);
  const int like_apart = ceil_div(pairs.apart * kDenseBytes, kPairBytes<kType>);
  const int all = pairs.small + like_apart;  // as many as there are bytes of
  const int waves = d.waves = ceil_div(all, slots * kMostWarps * kMostPairs);
  d.block_pairs = ceil_div(all, slots * waves) - 1;
  do {
    ++d.block_pairs;
    d.clusters = ceil_div(pairs.small, d.block_pairs);
    if (pairs.apart == 0) break;
    const int clusters = std::min(ceil_div(like_apart, d.block_pairs), pairs.apart);
    d.apart_block_pairs = ceil_div(pairs.apart, clusters);
    d.apart_clusters = ceil_div(pairs.apart, d.apart_block_pairs);
  } while (d.clusters + d.apart_clusters > slots * waves &&
           d.block_pairs < kMostWarps * kMostPairs);
  // The fewer pairs a warp has at a time the more often activations are read.
  const int tiles = d.tiles = ceil_div(across, splits);
  d.work = 0;
  for (int teams = ceil_div(d.block_pairs, kMostPairs);
       teams <= std::min(d.block_pairs, kMostWarps); ++teams) {
    const int slices = std::min(kMostWarps / teams, tiles);
    const int work = ceil_div(d.block_pairs, teams) * ceil_div(tiles, slices);
    if (d.work > 0 && work >= d.work) continue;
    d.work = work;
    d.teams = teams;
    d.slices = slices;
  }
  d.pitch = tiles * PairOf<kType>::kColumns + 32;
  const int under_way = tokens <= 8 ? kSlots<kType, 1> : kSlots<kType, 2>;
  const size_t loop = tokens * d.pitch * sizeof(__nv_bfloat16) + group_bytes<kType, 2>(tiles) +
                      size_t(d.teams) * d.slices * under_way * kPairBytes<kType>;
  const size_t end = sizeof(float) * d.slices * tokens * (d.block_pairs * kPairRows + 4);
  d.bytes = std::max(loop, end);
  return d;
}

int pairs_of(int64_t rows) { return static_cast<int>((rows + kPairRows - 1) / kPairRows); }

template <DType kType>
int across(const SmallBatch& m) {
  return ceil_div(static_cast<int>(m.weight.shape[1]), PairOf<kType>::kColumns);
}

// The division that lets a multiprocessor finish first, or none that fits. Its time is that of the
// warp with most to do, counted as the bytes that all warps would read. Activations come from the
// second level cache while weights are under way, and a cluster's exchange takes about as long as
// so many bytes.
template <DType kType>
std::optional<Division> choose(const Launch& how, const SmallBatch& m) {
  const Pairs pairs{pairs_of(m.weight.shape[0]), m.apart ? pairs_of(m.apart.shape[0]) : 0};
  std::optional<Division> best;
  double least = 0;
  for (int splits = 1; splits <= std::min(across<kType>(m), kMostSplits); splits *= 2) {
    const Division d =
        divide<kType>(how, pairs, across<kType>(m), static_cast<int>(m.tokens), splits);
    if (d.bytes > room(how)) continue;
    constexpr double kExchange = 8 * 1024;
    const double activations = double(d.tiles) * PairOf<kType>::kColumns * 2 * m.tokens;
    const double time = d.waves * (double(d.work) * kMostWarps * kPairBytes<kType> +
                                   activations / 8 + (splits > 1 ? kExchange : 0));
    if (best && time >= least) continue;
    least = time;
    best = d;
  }
  return best;
}

template <DType kType, int kTiles>
void launch_batch(const Launch& how, const Args& args, const Division& d) {
  [[maybe_unused]] static const bool allowed = [&] {
    allow_shared_memory(batch_kernel<kType, kTiles>, room(how));
    return true;
  }();
  launch(how,
         {.blocks = static_cast<unsigned>((d.clusters + d.apart_clusters) * d.splits),
          .threads = static_cast<unsigned>(d.teams * d.slices * 32),
          .shared_bytes = d.bytes,
          .cluster = static_cast<unsigned>(d.splits)},
         batch_kernel<kType, kTiles>, args);
}

template <DType kType>
void launch_batch(const Launch& how, const SmallBatch& m) {
  const Division d = *choose<kType>(how, m);
  const int rows = static_cast<int>(m.weight.shape[0]) / (m.gated ? 2 : 1);
  const int apart_rows = m.apart ? static_cast<int>(m.apart.shape[0]) : 0;
  const Args args{.x = static_cast<const __nv_bfloat16*>(m.x),
                  .weight = static_cast<const unsigned char*>(m.weight.data),
                  .y = m.y,
                  .tokens = static_cast<int>(m.tokens),
                  .rows = rows,
                  .cols = static_cast<int>(m.weight.shape[1]),
                  .y_stride = rows + apart_rows,
                  .across = across<kType>(m),
                  .weight_rows = static_cast<int>(m.weight.shape[0]),
                  .down = static_cast<int>(SmallTile::down(m.weight.shape[0])),
                  .pairs = pairs_of(m.weight.shape[0]),
                  .block_pairs = d.block_pairs,
                  .clusters = d.clusters,
                  .teams = d.teams,
                  .slices = d.slices,
                  .most_tiles = d.tiles,
                  .pitch = d.pitch,
                  .gated = m.gated,
                  .accumulate = m.accumulate,
                  .apart = static_cast<const __nv_bfloat16*>(m.apart.data),
                  .apart_rows = apart_rows,
                  .apart_pairs = pairs_of(apart_rows),
                  .apart_block_pairs = d.apart_block_pairs};
  if (m.tokens <= 8) return launch_batch<kType, 1>(how, args, d);
  launch_batch<kType, 2>(how, args, d);
}

// Calls body.operator()<kType>() for the type of a weight that there is a kernel for.
template <typename Body>
auto with_kernel(DType type, const Body& body) {
  switch (type) {
    case DType::kQ8:
      return body.template operator()<DType::kQ8>();
    case DType::kQ4:
      return body.template operator()<DType::kQ4>();
    default:
      return body.template operator()<DType::kBF16>();
  }
}

}  // namespace

bool small_batch_takes(const Launch& how, const SmallBatch& m) {
  const bool small = is_quantized(m.weight.dtype);
  if (!how.clusters || m.tokens <= kMatVecTokens || m.tokens > kSmallBatchTokens) return false;
  if (!small && !dense::fits(m.weight)) return false;
  const size_t bytes = small ? small_bytes(m.weight) : m.weight.bytes();
  if (m.weight.shape[1] % 8 != 0 || bytes > UINT32_MAX) return false;
  if (m.apart && (m.apart.dtype != DType::kBF16 || m.gated || !small)) return false;
  if (m.gated && m.weight.shape[0] % (2 * SmallTile::kRows) != 0) return false;
  return with_kernel(m.weight.dtype,
                     [&]<DType kType>() { return choose<kType>(how, m).has_value(); });
}

void small_batch(const Launch& how, const SmallBatch& m) {
  assert(small_batch_takes(how, m) && !(m.gated && m.accumulate));
  with_kernel(m.weight.dtype, [&]<DType kType>() { launch_batch<kType>(how, m); });
}

}  // namespace gsa::cuda
