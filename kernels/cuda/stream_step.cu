#include "kernels/cuda/stream_step.cuh"

#include "kernels/cuda/stream_copier.cuh"
#include "kernels/cuda/stream_products.cuh"
#include "kernels/cuda/stream_recurrence.cuh"

// A block owns a share of the outputs of every product. One warp copies the weights of that share,
// in the order of their use over the whole step, into a ring of stages in shared memory, and waits
// for nothing but free stages: memory stays busy while the other warps wait for the activations
// that other blocks publish.
//
// A step runs through all of the code once a layer, which must fit the instruction cache: products
// are one loop over a table, the two memories one loop over two, and little is unrolled.
namespace gsa::cuda {
namespace {

// The warps that compute.
template <DType kType, int kTokens>
__device__ __forceinline__ void compute(const StreamStep& a, const StreamPlan& plan,
                                        unsigned char* shared, const Tables& tables,
                                        const Ring& ring) {
  StreamProducts<kType, kTokens> products(a, plan, shared, ring);
  StreamRecurrence<kTokens> recurrence(a, plan, shared);
  products.embed(tables.shares[kDown]);
  tables.for_products(a.layer_count, [&](int which, const StreamShare& share, int l) {
    const StreamLayer& layer = tables.layers[l];
    products.product(which, tables.shares, layer.norm[which % kLayerProducts], a.epoch + l);
    if (which != (kSmall<kType> ? kApart : kQkvf)) return;
#pragma unroll 1
    for (int i = 0; blockIdx.x + i * gridDim.x < plan.units; ++i) {
      recurrence.mix(layer, a.epoch + l, tables.units[i], tables.inputs + i * plan.inputs);
    }
  });
}

template <DType kType, int kTokens>
__global__ void __launch_bounds__(kStreamThreads + 32, 1)
    stream_step_kernel(const __grid_constant__ StreamStep a,
                       const __grid_constant__ StreamPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900  // plan_stream() has no plan for others
  extern __shared__ __align__(1024) unsigned char shared[];
  auto* shares = reinterpret_cast<StreamShare*>(shared + plan.table);
  auto* layers = reinterpret_cast<StreamLayer*>(shared + plan.layers);
  auto* units = reinterpret_cast<StreamUnit*>(shared + plan.unit_table);
  auto* inputs = reinterpret_cast<int*>(shared + plan.input_table);
  auto* full = reinterpret_cast<uint64_t*>(shared + plan.barriers);
  const Ring ring{shared, full, full + 2 * kStageMost, plan.ring, kStageBytes<kType>};
  const int thread = threadIdx.x;
  constexpr int kWords = sizeof(StreamLayer) / 8;
#pragma unroll 1
  for (int i = thread; i < (a.layer_count + 1) * kWords; i += blockDim.x) {
    reinterpret_cast<uint64_t*>(layers)[i] = reinterpret_cast<const uint64_t*>(a.layers)[i];
  }
  if (thread <= kHead) {
    shares[thread] = plan.shares[thread];
    StreamShare& share = shares[thread];
    share.take(blockIdx.x, gridDim.x, kTokens);
    share.input += blockIdx.x % kReplicas * a.T * share.cols;
  }
  if (thread < plan.ring) {
    Barrier{ring.full + thread}.init(1);
    Barrier{ring.full + plan.ring + thread}.init(1);
    Barrier{ring.empty + thread}.init(1);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
#pragma unroll 1
  for (int i = thread; i < (a.layer_count + 1) * kLayerProducts * 2; i += blockDim.x) {
    acquire_matrix(a.matrices + i);
  }
  __syncthreads();
  const Tables tables{shares, layers, units, inputs};
  if (threadIdx.x >= kStreamThreads) {
    StreamCopier<kType>(a, plan, tables, ring).run();
    return;
  }
  // Weights are on their way while the step before ends.
  grid_release();
  grid_wait();
#pragma unroll 1
  for (int i = thread / 32; i < plan.block_units; i += kStreamWarps) {
    find_unit(a, plan, i, units[i], inputs + i * plan.inputs);
  }
  stream_sync();
  tell_units_found();
  compute<kType, kTokens>(a, plan, shared, tables, ring);
#endif
}

template <DType kType>
auto kernel_of(int tokens) {
  return tokens == 1   ? stream_step_kernel<kType, 1>
         : tokens == 2 ? stream_step_kernel<kType, 2>
                       : stream_step_kernel<kType, 4>;
}

}  // namespace

void run_stream(const Launch& how, const StreamStep& step, const StreamPlan& plan) {
  const auto kernel = step.type == DType::kQ8   ? kernel_of<DType::kQ8>(step.T)
                      : step.type == DType::kQ4 ? kernel_of<DType::kQ4>(step.T)
                                                : kernel_of<DType::kBF16>(step.T);
  allow_shared_memory(kernel, plan.bytes);
  launch(how,
         {.blocks = static_cast<unsigned>(how.multiprocessors),
          .threads = kStreamThreads + 32,
          .shared_bytes = static_cast<size_t>(plan.bytes)},
         kernel, step, plan);
}

}  // namespace gsa::cuda
