#include <cstddef>
#include <cstdint>

#include "tests/fuzz/text_entries.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  gsa::fuzz::chat_template({reinterpret_cast<const char*>(data), size});
  return 0;
}
