#pragma once

#include <string>

#include <gtest/gtest.h>

#include "kernels/error.h"

namespace gsa::test {

// The message of the gsa::Error that `operation` must throw; a failure, and "", where it does not.
// Every message must be one line.
template <typename Operation>
std::string error_of(Operation&& operation) {
  try {
    operation();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text;
  }
  ADD_FAILURE() << "no gsa::Error thrown";
  return "";
}

}  // namespace gsa::test
