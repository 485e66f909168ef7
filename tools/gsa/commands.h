#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace gsa {

// What the chosen subcommand does; returns the exit status.
using Action = std::function<int()>;

// Each adds one subcommand, which sets `action` when it is chosen.
void add_convert(CLI::App& program, Action& action);
void add_inspect(CLI::App& program, Action& action);
void add_generate(CLI::App& program, Action& action);
void add_batch(CLI::App& program, Action& action);
void add_chat(CLI::App& program, Action& action);
void add_bench(CLI::App& program, Action& action);
void add_score(CLI::App& program, Action& action);
void add_perplexity(CLI::App& program, Action& action);

}  // namespace gsa
