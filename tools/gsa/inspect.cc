#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/hf_folder.h"
#include "kernels/error.h"
#include "tools/gsa/commands.h"
#include "tools/gsa/options.h"
#include "tools/gsa/result_json.h"

namespace gsa {
namespace {

using Json = nlohmann::ordered_json;

Json config_json(const GsaConfig& config) { return Json::parse(normalized_config(config)); }

Json tensors_json(const std::map<std::string, TensorView>& tensors) {
  Json list = Json::array();
  for (const auto& [name, view] : tensors) {
    Json shape = Json::array();
    for (int i = 0; i < view.rank; ++i) shape.push_back(view.shape[i]);
    list.push_back({{"name", name},
                    {"dtype", dtype_name(view.dtype)},
                    {"shape", shape},
                    {"bytes", view.bytes()}});
  }
  return list;
}

void add_config(const GsaConfig& config, DType state_type, Json& out) {
  out["parameters"] = config.parameters();
  out["state_bytes"] = config.state_bytes(state_type);
  out["config"] = config_json(config);
}

Json describe(const std::string& path, DType state_type) {
  Json out = {{"file", path}};
  if (std::filesystem::is_directory(path)) {
    const HfFolder folder = HfFolder::open(path);
    out["kind"] = "Hugging Face folder";
    out["type"] = dtype_name(folder.type());
    out["tokenizer"] = !folder.tokenizer().empty();
    out["chat_template"] = !folder.chat_template().empty();
    add_config(folder.config(), state_type, out);
    out["tensors"] = tensors_json(folder.tensors());
    return out;
  }
  const SafetensorsFile file = SafetensorsFile::open(path);
  if (file.metadata().contains("gsa.snapshot")) {
    out["kind"] = file.metadata().contains("gsa.conversation") ? "conversation" : "snapshot";
    out["model"] = file.metadata("gsa.model");
    out["fingerprint"] = file.metadata("gsa.fingerprint");
    out["tokens"] = file.tensor("tokens").elements();
    add_config(parse_normalized_config(file.metadata("gsa.config"), path), state_type, out);
    out["tensors"] = tensors_json(file.tensors());
    return out;
  }
  const Checkpoint checkpoint = Checkpoint::open(path);
  out["kind"] = "checkpoint";
  out["type"] = checkpoint.type();
  out["fingerprint"] = checkpoint.fingerprint();
  out["tokenizer"] = !checkpoint.tokenizer().empty();
  out["chat_template"] = !checkpoint.chat_template().empty();
  out["file_bytes"] = std::filesystem::file_size(path);
  add_config(checkpoint.config(), state_type, out);
  out["tensors"] = tensors_json(checkpoint.file().tensors());
  return out;
}

void print_text(const Json& out) {
  for (const auto& [key, value] : out.items()) {
    if (key == "tensors" || key == "config") continue;
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    std::printf("%-16s %s\n", key.c_str(), text.c_str());
  }
  std::printf("\nconfig\n");
  for (const auto& [key, value] : out["config"].items()) {
    std::printf("  %-24s %s\n", key.c_str(), value.dump().c_str());
  }
  std::printf("\n%-48s %-6s %16s %14s\n", "tensor", "dtype", "shape", "bytes");
  for (const Json& tensor : out["tensors"]) {
    std::printf("%-48s %-6s %16s %14lld\n", tensor["name"].get<std::string>().c_str(),
                tensor["dtype"].get<std::string>().c_str(), tensor["shape"].dump().c_str(),
                tensor["bytes"].get<long long>());
  }
}

}  // namespace

void add_inspect(CLI::App& program, Action& action) {
  struct InspectFlags {
    std::string file, state_type = RunFlags().state_type;
    bool json = false;
  };
  CLI::App* command =
      program.add_subcommand("inspect", "Show what a checkpoint, snapshot or model folder holds");
  const auto flags = std::make_shared<InspectFlags>();
  command->add_option("FILE", flags->file, "The file or folder")->required();
  add_state_type_flag(*command, flags->state_type);
  command->add_flag("--json", flags->json, "Print one JSON object");
  command->callback([=, &action] {
    action = [flags] {
      const Json out = describe(flags->file, state_type(flags->state_type));
      if (flags->json) {
        std::printf("%s\n", dump_json(out).c_str());
      } else {
        print_text(out);
      }
      return 0;
    };
  });
}

}  // namespace gsa
