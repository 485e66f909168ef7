#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

namespace gsa {

// A few threads that share out numbered units of work. Idle threads spin for some microseconds,
// since a step follows its predecessor closely, then sleep. A job waits for its units, not for
// threads: one that the system keeps from running, and that has no unit, holds nobody up.
//
// parallel_for may be called from one thread at a time; the caller takes part in the work.
class ThreadPool {
 public:
  // REQUIRES: threads >= 1, the caller included.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(unit) once for every unit in [0, units), in any order and on any thread; returns
  // when all are done. The body must not throw.
  template <typename Body>
  void parallel_for(int64_t units, Body&& body) {
    run(
        units,
        [](void* context, int64_t unit) {
          (*static_cast<std::remove_reference_t<Body>*>(context))(unit);
        },
        &body);
  }

 private:
  using Call = void (*)(void* context, int64_t unit);

  void run(int64_t units, Call call, void* context);
  void work();
  void worker_loop();

  Call call_ = nullptr;
  void* context_ = nullptr;
  int64_t units_ = 0;
  // Each on its own cache line: every thread writes unclaimed_, and undone_ when nothing is left.
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int64_t> unclaimed_{0};
  alignas(64) std::atomic<int64_t> undone_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Cores that do not share an execution unit, among those this process may run on; at least 1.
int physical_cores();

}  // namespace gsa
