#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace gsa {

// XXH64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md) with seed 0, over bytes
// that come in pieces: a fingerprint that keeps up with a disk. Not for security.
class XxHash64 {
 public:
  XxHash64();
  void update(const void* data, size_t bytes);
  uint64_t digest() const;

 private:
  static constexpr size_t kStripe = 32;
  void consume(const unsigned char* stripe);

  std::array<uint64_t, 4> lanes_;
  std::array<unsigned char, kStripe> rest_{};  // bytes that do not fill a stripe yet
  uint64_t total_ = 0;
};

}  // namespace gsa
