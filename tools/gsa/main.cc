#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>

#include "kernels/error.h"
#include "tools/gsa/commands.h"

namespace {

constexpr int kFailed = 1;
constexpr int kWrongUsage = 2;

int fail(int status, const char* message) {
  std::fprintf(stderr, "gsa: error: %s\n", message);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  spdlog::set_default_logger(spdlog::stderr_color_st("gsa"));
  spdlog::set_pattern("%n: %^%l%$: %v");

  CLI::App program("Runs Gated Slot Attention language models.", "gsa");
  program.set_version_flag("--version", "gsa " GSA_VERSION);
  gsa::Action action;
  gsa::add_convert(program, action);
  gsa::add_inspect(program, action);
  gsa::add_generate(program, action);
  gsa::add_batch(program, action);
  gsa::add_chat(program, action);
  gsa::add_bench(program, action);
  gsa::add_score(program, action);
  gsa::add_perplexity(program, action);
  try {
    program.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return program.exit(help);
  } catch (const CLI::ParseError& error) {
    return fail(kWrongUsage, (std::string(error.what()) + " (see --help)").c_str());
  }
  if (!action) return fail(kWrongUsage, "a command is required, such as generate (see --help)");
  try {
    const int status = action();
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return status;
    throw gsa::Error("standard output cannot be written: {}", std::strerror(errno));
  } catch (const std::bad_alloc&) {
    return fail(kFailed, "out of memory");
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  }
}
