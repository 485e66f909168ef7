#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace gsa {

// Floats in host memory that a device may still be writing (Backend::copy_out). Their number is
// known at once; whoever reads them first waits for them. Copies share the memory, and nothing
// changes it once it is written. May be read, copied and given up by any thread, also when the
// backend is gone.
class HostFloats {
 public:
  // The memory, freed with the last one that shares it.
  class Memory {
   public:
    virtual ~Memory() = default;
    // Waits until it is written; throws gsa::Error where the device failed.
    virtual const float* data() const = 0;
  };

  HostFloats() = default;
  HostFloats(std::shared_ptr<const Memory> memory, size_t size)
      : memory_(std::move(memory)), size_(size) {}
  HostFloats(std::vector<float> floats) : size_(floats.size()) {
    memory_ = std::make_shared<const Plain>(std::move(floats));
  }

  size_t size() const { return size_; }
  const float* data() const { return memory_ ? memory_->data() : nullptr; }
  const float* begin() const { return data(); }
  const float* end() const { return data() + size_; }
  const Memory* memory() const { return memory_.get(); }  // for the backend that it is of

  friend bool operator==(const HostFloats& a, const HostFloats& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  class Plain final : public Memory {
   public:
    explicit Plain(std::vector<float> floats) : floats_(std::move(floats)) {}
    const float* data() const override { return floats_.data(); }

   private:
    std::vector<float> floats_;
  };

  std::shared_ptr<const Memory> memory_;
  size_t size_ = 0;
};

}  // namespace gsa
