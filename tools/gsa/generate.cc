#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/files.h"
#include "engine/engine.h"
#include "kernels/error.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/interrupt.h"
#include "tools/gsa/options.h"
#include "tools/gsa/progress_bar.h"
#include "tools/gsa/result_json.h"

namespace gsa {
namespace {

struct GenerateFlags {
  RunFlags run;
  SamplingFlags sampling;
  std::string prompt, file, tokens, save_state, load_state;
  bool echo = false;
  bool json = false;
};

// Prompt ids: what --tokens says, or the text; after --load-state it goes on without a BOS.
std::vector<int32_t> prompt_ids(const GenerateFlags& flags, const std::string& text,
                                const LoadedModel& model) {
  if (!flags.tokens.empty()) return parse_token_ids(flags.tokens);
  if (!model.tokenizer) {
    throw Error("{} has no tokenizer: give the prompt as --tokens", flags.run.model);
  }
  const bool continues = !flags.load_state.empty();
  std::vector<int32_t> ids =
      continues ? model.tokenizer->encode_plain(text) : model.tokenizer->encode(text);
  if (ids.empty() && !continues) {
    throw Error("the prompt is empty, and this model's tokenizer begins texts with no token");
  }
  return ids;
}

void log_speed(const Result& result) {
  const std::chrono::duration<double> prefill = result.first_token - result.started;
  const std::chrono::duration<double> decode = result.finished - result.first_token;
  const int64_t decoded = static_cast<int64_t>(result.completions[0].tokens.size()) - 1;
  spdlog::debug("prompt: {} tokens in {:.3f} s; output: {} tokens, {:.1f} tokens/s",
                result.prompt_tokens, prefill.count(), decoded + 1,
                decoded > 0 ? decoded / decode.count() : 0.0);
}

Result run_to_end(Engine& engine, const InterruptGuard& guard, Request request, bool stream) {
  std::promise<Result> promise;
  std::future<Result> future = promise.get_future();
  size_t shown = 0;
  const auto id = engine.submit(
      std::move(request), [&](Result&& result) { promise.set_value(std::move(result)); },
      [&](const Delta& delta) {
        if (!stream) return;
        shown += std::fwrite(delta.text.data(), 1, delta.text.size(), stdout);
        std::fflush(stdout);
      });
  while (future.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) {
    if (guard.interrupted() || std::ferror(stdout) != 0) engine.cancel(*id);
  }
  Result result = future.get();
  if (stream && result.error.empty()) {
    // An interrupt comes between tokens: text that was held back as a beginning of a stop string.
    const std::string& text = result.completions[0].text;
    std::fwrite(text.data() + shown, 1, text.size() - shown, stdout);
  }
  return result;
}

int run_generate(const GenerateFlags& flags) {
  if (!flags.save_state.empty()) check_writable(flags.save_state);
  const auto model = load_model(flags.run.model);
  Request request = make_request(flags.sampling);
  const std::string text = flags.file.empty() ? flags.prompt : read_text(flags.file);
  request.prompt = prompt_ids(flags, text, *model);
  if (!flags.load_state.empty()) {
    request.from =
        std::make_shared<Snapshot>(load_snapshot(flags.load_state, model->config, model->identity));
  }
  request.keep_snapshot = !flags.save_state.empty();
  const uint64_t seed = request.sampling.seed;
  Engine engine(model, {.device = flags.run.device,
                        .threads = flags.run.threads,
                        .states = 1,
                        .state_type = state_type(flags.run.state_type),
                        .on_load = loading_bar()});
  spdlog::debug("{}: {} on {}; seed {}", flags.run.model, model->type,
                engine.backend().description(), seed);
  const InterruptGuard guard;  // to the end: a state is saved whole
  if (flags.echo && !flags.json) std::fwrite(text.data(), 1, text.size(), stdout);
  const std::vector<int32_t> prompt = request.prompt;
  Result result = run_to_end(engine, guard, std::move(request), !flags.json);
  if (!result.error.empty()) throw Error("{}", result.error);
  Completion& completion = result.completions[0];
  if (flags.json) {
    nlohmann::ordered_json out;
    out["prompt"] = text;
    out["text"] = (flags.echo ? text : std::string()) + completion.text;
    out["prompt_tokens"] = prompt;
    out["tokens"] = completion.tokens;
    out["finish_reason"] = finish_reason_name(completion.finish_reason);
    out["seed"] = seed;
    if (flags.sampling.logprobs > 0) {
      out["logprobs"] =
          logprobs_json(completion.logprobs, model->tokenizer ? &*model->tokenizer : nullptr);
    }
    out["usage"] = usage_json(result);
    std::printf("%s\n", dump_json(out).c_str());
  } else {
    std::fputc('\n', stdout);
  }
  if (completion.snapshot) {
    save_snapshot(*completion.snapshot, model->config, model->identity, flags.save_state);
  } else if (!flags.save_state.empty()) {
    throw Error("--save-state {}: interrupted before the end of the prompt; nothing was saved",
                flags.save_state);
  }
  log_speed(result);
  return 0;
}

}  // namespace

void add_generate(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand("generate", "Continue a text");
  const auto flags = std::make_shared<GenerateFlags>();
  add_run_flags(*command, flags->run);
  CLI::Option* prompt = command->add_option("-p,--prompt", flags->prompt, "The text to continue");
  CLI::Option* file =
      command->add_option("-f,--file", flags->file, "The same from a file, - for standard input");
  CLI::Option* tokens =
      command->add_option("--tokens", flags->tokens, "The same as token ids: \"1 5 9\"");
  file->excludes(prompt);
  tokens->excludes(prompt)->excludes(file);
  command->add_flag("--echo", flags->echo, "Print the prompt too");
  command->add_flag("--json", flags->json, "Print one JSON object at the end");
  command->add_option("--save-state", flags->save_state, "Write the state at the end to this file");
  CLI::Option* load = command->add_option("--load-state", flags->load_state,
                                          "Go on from a saved state; the prompt may be left out");
  add_sampling_flags(*command, flags->sampling);
  command->callback([=, &action] {
    if (!*prompt && !*file && !*tokens && !*load) {
      throw CLI::RequiredError("-p, -f, --tokens or --load-state");
    }
    action = [flags] { return run_generate(*flags); };
  });
}

}  // namespace gsa
