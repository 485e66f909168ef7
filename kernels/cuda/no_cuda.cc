// Stands in for CudaBackend in a build without CUDA.
#include "kernels/backend.h"
#include "kernels/error.h"

namespace gsa {

std::unique_ptr<Backend> make_cuda_backend() {
  throw Error(
      "--device cuda: this program was built without CUDA; use --device cpu, or build it with "
      "`cmake --preset cuda`");
}

bool cuda_available() { return false; }

}  // namespace gsa
