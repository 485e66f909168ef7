#include "checkpoint/xxhash64.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace gsa {
namespace {

constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87u;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4Fu;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9u;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63u;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5u;

template <typename T>
T read(const unsigned char* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

uint64_t round(uint64_t lane, uint64_t input) {
  return std::rotl(lane + input * kPrime2, 31) * kPrime1;
}

}  // namespace

XxHash64::XxHash64() : lanes_{kPrime1 + kPrime2, kPrime2, 0, uint64_t{0} - kPrime1} {}

void XxHash64::consume(const unsigned char* stripe) {
  for (size_t i = 0; i < lanes_.size(); ++i) {
    lanes_[i] = round(lanes_[i], read<uint64_t>(stripe + 8 * i));
  }
}

void XxHash64::update(const void* data, size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  const size_t kept = total_ % kStripe;
  total_ += bytes;
  if (kept > 0) {
    const size_t n = std::min(bytes, kStripe - kept);
    std::memcpy(rest_.data() + kept, p, n);
    if (kept + n < kStripe) return;
    consume(rest_.data());
    p += n;
    bytes -= n;
  }
  for (; bytes >= kStripe; p += kStripe, bytes -= kStripe) consume(p);
  if (bytes > 0) std::memcpy(rest_.data(), p, bytes);
}

uint64_t XxHash64::digest() const {
  uint64_t hash = kPrime5;
  if (total_ >= kStripe) {
    hash = std::rotl(lanes_[0], 1) + std::rotl(lanes_[1], 7) + std::rotl(lanes_[2], 12) +
           std::rotl(lanes_[3], 18);
    for (uint64_t lane : lanes_) hash = (hash ^ round(0, lane)) * kPrime1 + kPrime4;
  }
  hash += total_;
  const unsigned char* p = rest_.data();
  size_t left = total_ % kStripe;
  for (; left >= 8; p += 8, left -= 8) {
    hash = std::rotl(hash ^ round(0, read<uint64_t>(p)), 27) * kPrime1 + kPrime4;
  }
  if (left >= 4) {
    hash = std::rotl(hash ^ read<uint32_t>(p) * kPrime1, 23) * kPrime2 + kPrime3;
    p += 4;
    left -= 4;
  }
  for (; left > 0; ++p, --left) hash = std::rotl(hash ^ *p * kPrime5, 11) * kPrime1;
  hash = (hash ^ hash >> 33) * kPrime2;
  hash = (hash ^ hash >> 29) * kPrime3;
  return hash ^ hash >> 32;
}

}  // namespace gsa
