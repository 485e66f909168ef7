#pragma once

#include <cstdint>
#include <string>

namespace gsa::test {

// A safetensors file of any header, right or wrong, and `data_size` zero bytes.
inline std::string safetensors_bytes(const std::string& header, size_t data_size = 0) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + header +
         std::string(data_size, '\0');
}

}  // namespace gsa::test
