#include "kernels/backend.h"

#include "kernels/error.h"

namespace gsa {

void Backend::sample(const TensorView& logits, std::span<const SampleRow> rows,
                     std::span<SampleResult> results) {
  queue_sample(logits, rows);
  collect_sample(results);
}

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
  if (device == "cuda" || (device == "auto" && cuda_available())) return make_cuda_backend();
  if (device == "auto" || device == "cpu") return make_cpu_backend(threads);
  throw Error("--device {}: expected auto, cpu or cuda", device);
}

}  // namespace gsa
