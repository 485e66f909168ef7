#include "checkpoint/convert.h"

#include <cstdio>
#include <memory>
#include <string>

#include "checkpoint/files.h"
#include "kernels/error.h"
#include "text/tokenizer.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/interrupt.h"
#include "tools/gsa/options.h"
#include "tools/gsa/progress_bar.h"

namespace gsa {
namespace {

struct ConvertFlags {
  std::string source, destination, type, tokenizer;
  bool force = false;
};

int run_convert(const ConvertFlags& flags) {
  ConvertOptions options;
  options.force = flags.force;
  if (!flags.tokenizer.empty()) {
    options.tokenizer = flags.tokenizer;
    Tokenizer(map_file(flags.tokenizer).bytes, {}, /*bos_id=*/-1, flags.tokenizer);  // is one
  }
  if (!flags.type.empty()) options.type = weight_type(flags.type);
  const InterruptGuard guard;
  ProgressBar bar;
  options.progress = [&](int64_t done, int64_t total) {
    if (guard.interrupted()) throw Error("interrupted; nothing was written");
    bar.show(done, total);
  };
  convert(flags.source, flags.destination, options);
  return 0;
}

}  // namespace

void add_convert(CLI::App& program, Action& action) {
  CLI::App* command = program.add_subcommand(
      "convert",
      "Turn a Hugging Face folder of a GSA model, or a checkpoint, into one checkpoint file");
  const auto flags = std::make_shared<ConvertFlags>();
  command
      ->add_option("SRC", flags->source,
                   "Folder with config.json and *.safetensors, or a checkpoint")
      ->required();
  command->add_option("DST", flags->destination, "The checkpoint to write")->required();
  command
      ->add_option("--type", flags->type,
                   "Type of the matrices; by default the source's. q8 and q4 are 8 and "
                   "4 bit integers with scales, the embeddings staying at 16 bit")
      ->check(CLI::IsMember(weight_type_names()));
  command->add_option("--tokenizer", flags->tokenizer,
                      "Sentencepiece model to take in place of the source's tokenizer");
  command->add_flag("--force", flags->force, "Overwrite DST");
  command->callback([flags, &action] { action = [flags] { return run_convert(*flags); }; });
}

}  // namespace gsa
