// The example of the README: the text shown is the program that is compiled, and it runs.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>

#include "engine/engine.h"
#include "tests/support/temporary_folder.h"

namespace gsa {
namespace {

const std::string kSource = GSA_SOURCE_DIR;
const std::string kModel = kSource + "/models/tale-10m.safetensors";

std::string output_of(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  std::string out;
  char buffer[4096];
  while (const size_t n = std::fread(buffer, 1, sizeof(buffer), pipe)) out.append(buffer, n);
  return pclose(pipe) == 0 ? out : "failed: " + out;
}

TEST(Readme, ShowsTheExampleThatIsCompiled) {
  const std::string readme = test::read_bytes(kSource + "/README.md");
  const std::string example = test::read_bytes(kSource + "/tests/examples/embed.cc");
  EXPECT_NE(readme.find("```cpp\n" + example + "```\n"), std::string::npos)
      << "README.md must hold tests/examples/embed.cc word for word";
}

TEST(Readme, ExampleTellsBothStoriesAsTheEngineDoes) {
  const auto model = load_model(kModel);
  Engine engine(model, {.device = "cpu", .threads = 1});
  Request request{.prompt = model->tokenizer->encode("Once upon a time"), .max_tokens = 60};
  request.sampling = {.temperature = 0.8, .top_p = 0.95};
  std::string stories[2];
  for (uint64_t i : {0, 1}) {
    request.sampling.seed = 7 + i;
    stories[i] = engine.submit(request).get().completions[0].text;
  }
  EXPECT_EQ(output_of(GSA_EXAMPLE " " + kModel), stories[0] + "\n---" + stories[1] + "\n");
}

}  // namespace
}  // namespace gsa
