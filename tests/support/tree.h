#pragma once

#include <cstdlib>
#include <filesystem>

namespace gsa::test {

// The project's tree, whose data tests read: GSA_TEST_DATA where it is set, for programs that run
// on another machine than built them, and the folder that they were built from otherwise.
inline std::filesystem::path tree() {
  const char* folder = std::getenv("GSA_TEST_DATA");
  return folder != nullptr ? folder : GSA_SOURCE_DIR;
}

}  // namespace gsa::test
