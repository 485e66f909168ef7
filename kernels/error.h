#pragma once

#include <stdexcept>
#include <string>

// nvcc does not compile fmt: files for it build their messages themselves.
#ifndef __CUDACC__
#include <fmt/format.h>
#endif

namespace gsa {

// The one exception type. It ends an operation and carries one line that a user can act on: the
// file, field, tensor or flag concerned, what was found and what was expected.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}

#ifndef __CUDACC__
  template <typename... Args>
  explicit Error(fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
#endif
};

}  // namespace gsa
