#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include <gtest/gtest.h>

#include "tests/support/temporary_folder.h"

namespace gsa::test {

// Runs a fuzz target's function over every file of its corpus; it aborts on a finding.
inline void run_corpus(const std::string& name, void (*entry)(std::string_view)) {
  int files = 0;
  for (const auto& file : std::filesystem::directory_iterator(
           std::filesystem::path(GSA_SOURCE_DIR) / "tests/fuzz/corpus" / name)) {
    SCOPED_TRACE(file.path().string());
    const std::string bytes = read_bytes(file.path());
    ASSERT_NO_THROW(entry(bytes));
    ++files;
  }
  EXPECT_GE(files, 10);
}

}  // namespace gsa::test
