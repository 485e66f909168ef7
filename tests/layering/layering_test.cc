// Holds the direction of includes, the places of the libraries and the length of files (the layers
// are described in docs/architecture.md).

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Complaints = std::vector<std::string>;

constexpr long kLineLimit = 450;  // every file is shorter

// What the files of a layer may include of the project.
const std::map<std::string, std::set<std::string>> kLayers = {
    {"kernels", {"kernels"}},
    {"checkpoint", {"checkpoint", "kernels"}},
    {"text", {"text", "checkpoint", "kernels"}},
    {"model", {"model", "checkpoint", "kernels"}},
    {"engine", {"engine", "model", "text", "checkpoint", "kernels"}},
    {"tools", {"tools", "engine", "model", "text", "checkpoint", "kernels"}},
};

bool under(const std::string& path, std::string_view folder) { return path.starts_with(folder); }

// "src/model/x.cc" and "model/x.h" are of "model", "kernels/cpu/x.cc" of "kernels".
std::string first_folder(std::string path) {
  if (under(path, "src/")) path.erase(0, 4);
  const size_t slash = path.find('/');
  return slash == path.npos ? "" : path.substr(0, slash);
}

bool is_source(const std::string& path) {
  const std::string extension = fs::path(path).extension();
  return extension == ".cc" || extension == ".cu" || extension == ".h" || extension == ".cuh";
}

// Without <regex>: gcc 12 warns of libstdc++'s own code when it compiles that for a sanitizer.
std::vector<std::string> includes_of(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::string_view rest = line;
    const auto skip = [&](std::string_view word) {
      rest.remove_prefix(std::min(rest.find_first_not_of(" \t"), rest.size()));
      const bool there = rest.starts_with(word);
      if (there) rest.remove_prefix(word.size());
      return there;
    };
    if (!skip("#") || !skip("include") || !(skip("<") || skip("\""))) continue;
    const size_t end = rest.find_first_of(">\"");
    if (end != rest.npos && end > 0) found.emplace_back(rest.substr(0, end));
  }
  return found;
}

bool is_cuda_header(const std::string& include) {
  if (include.ends_with(".cuh")) return true;
  if (kLayers.count(first_folder(include)) > 0) return false;  // kernels/cuda/cuda_backend.h
  const std::string name = fs::path(include).filename();
  return under(include, "cuda/") || name == "cooperative_groups.h" ||
         (name.ends_with(".h") && (under(name, "cuda") || under(name, "cublas")));
}

bool is_json_header(const std::string& include) {
  return under(include, "nlohmann/") || include == "checkpoint/json.h";
}

// The libraries that have one place each; "" where the include is right.
std::string misplaced_library(const std::string& path, const std::string& include) {
  const bool test = under(path, "tests/");
  if (is_cuda_header(include) && !under(path, "kernels/cuda/") && !under(path, "tests/kernels/")) {
    return "CUDA headers belong in kernels/cuda";
  }
  if (under(include, "sentencepiece") && path != "src/text/tokenizer.cc") {
    return "sentencepiece belongs in src/text/tokenizer.cc";
  }
  const bool forward_in_tool = include == "nlohmann/json_fwd.hpp" && under(path, "tools/");
  if (is_json_header(include) && !test && path != "src/checkpoint/json.h" && !forward_in_tool &&
      (under(path, "kernels/") || !path.ends_with(".cc"))) {
    return "JSON belongs in .cc files above the kernels";
  }
  if (under(include, "CLI/") && !under(path, "tools/")) return "CLI11 belongs in tools";
  if (under(include, "hwy/") && !under(path, "kernels/cpu/") && !under(path, "tests/kernels/")) {
    return "Highway belongs in kernels/cpu";
  }
  if ((include == "histedit.h" || under(include, "editline/")) &&
      path != "tools/gsa/line_editor.cc") {
    return "libedit belongs in tools/gsa/line_editor.cc";
  }
  return "";
}

std::string wrong_direction(const std::string& path, const std::string& include) {
  if (under(path, "tests/")) return "";
  if (include.find("..") != include.npos) return "paths in includes begin at the root";
  const auto layer = kLayers.find(first_folder(path));
  const std::string target = first_folder(include);
  const bool of_project = kLayers.count(target) > 0 || target == "tests";
  if (layer == kLayers.end() || !of_project || layer->second.count(target) > 0) return "";
  return layer->first + " does not know " + target;
}

// What is wrong with a file of this path (from the root) and text.
Complaints check(const std::string& path, const std::string& text) {
  Complaints complaints;
  const bool test = under(path, "tests/");
  if (!test && kLayers.count(first_folder(path)) == 0) complaints.push_back(path + ": no layer");
  const long lines = std::count(text.begin(), text.end(), '\n');
  if (!test && lines >= kLineLimit) {
    complaints.push_back(path + ": " + std::to_string(lines) + " lines, probably two jobs");
  }
  if (!is_source(path)) return complaints;
  for (const std::string& include : includes_of(text)) {
    for (const std::string& wrong :
         {misplaced_library(path, include), wrong_direction(path, include)}) {
      if (!wrong.empty()) complaints.push_back(path + " includes " + include + ": " + wrong);
    }
  }
  return complaints;
}

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(Layering, HoldsInEveryFile) {
  const fs::path root = GSA_SOURCE_DIR;
  int sources = 0;
  Complaints all;
  for (const char* folder : {"kernels", "src", "tools", "tests"}) {
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string path = entry.path().lexically_relative(root).generic_string();
      if (!entry.is_regular_file() || (folder == std::string("tests") && !is_source(path)))
        continue;
      sources += is_source(path);
      const Complaints found = check(path, read(entry.path()));
      all.insert(all.end(), found.begin(), found.end());
    }
  }
  EXPECT_THAT(all, IsEmpty());
  EXPECT_GT(sources, 50) << "the tree was not found";
}

TEST(Layering, ReadsIncludesAsThePreprocessorDoes) {
  EXPECT_THAT(includes_of("#pragma once\n#include <a>\n  #  include\t\"b/c.h\"  // why\n"
                          "// #include \"d.h\"\nx #include <e>\n#include MACRO\n#include <f>"),
              ElementsAre("a", "b/c.h", "f"));
}

TEST(Layering, RefusesEveryIncludeAgainstTheDirection) {
  const std::vector<std::string> order = {"kernels", "checkpoint", "text",
                                          "model",   "engine",     "tools"};
  const auto file_of = [](const std::string& layer) {
    return (layer == "kernels" || layer == "tools" ? "" : "src/") + layer + "/x.cc";
  };
  for (size_t from = 0; from < order.size(); ++from) {
    for (size_t to = 0; to < order.size(); ++to) {
      const bool strangers = order[from] == "model" && order[to] == "text";
      const bool right = to <= from && !strangers;
      for (const char* prefix : {"", "src/"}) {
        const std::string line = "#include \"" + (prefix + order[to]) + "/y.h\"\n";
        EXPECT_EQ(check(file_of(order[from]), line).empty(), right) << file_of(order[from]) << line;
      }
    }
  }
}

TEST(Layering, RefusesTestsInTheProductAndRelativePaths) {
  EXPECT_THAT(check("src/model/x.cc", "#include \"tests/support/y.h\"\n"),
              ElementsAre(HasSubstr("does not know tests")));
  EXPECT_THAT(check("src/text/x.cc", "#include \"../model/y.h\"\n"),
              ElementsAre(HasSubstr("begin at the root")));
  EXPECT_THAT(check("src/novelty/x.cc", ""), ElementsAre(HasSubstr("no layer")));
}

struct Library {
  const char* include;
  std::vector<std::string> right;
  std::vector<std::string> wrong;
};

TEST(Layering, KeepsLibrariesInTheirPlaces) {
  const std::vector<Library> libraries = {
      {"<cuda_runtime.h>",
       {"kernels/cuda/x.cu", "kernels/cuda/x.cuh", "tests/kernels/x.cu"},
       {"kernels/x.cc", "kernels/cpu/x.cc", "src/model/x.h", "tools/gsa/x.cc", "tests/model/x.cc"}},
      {"<cuda.h>", {"kernels/cuda/x.cc"}, {"kernels/backend.h"}},
      {"<cublasLt.h>", {"kernels/cuda/x.cu"}, {"kernels/backend.h", "src/engine/x.cc"}},
      {"<cub/block/block_reduce.cuh>", {"kernels/cuda/x.cu"}, {"kernels/cpu/x.cc"}},
      {"\"kernels/cuda/common.cuh\"", {"kernels/cuda/x.cu"}, {"kernels/backend.cc"}},
      {"\"kernels/cuda/cuda_backend.h\"", {"kernels/backend.cc", "src/model/x.cc"}, {}},
      {"<sentencepiece_processor.h>",
       {"src/text/tokenizer.cc"},
       {"src/text/tokenizer.h", "src/text/stream_decoder.cc", "tests/text/x_test.cc"}},
      {"<nlohmann/json.hpp>",
       {"src/checkpoint/config.cc", "tools/gsa/batch.cc", "src/checkpoint/json.h",
        "tests/support/hf_source.h"},
       {"src/checkpoint/config.h", "kernels/x.cc", "kernels/x.h", "tools/gsa/x.h"}},
      {"<nlohmann/json_fwd.hpp>", {"src/model/x.cc", "tools/gsa/x.h"}, {"src/model/x.h"}},
      {"\"checkpoint/json.h\"", {"src/model/snapshot.cc"}, {"src/model/snapshot.h"}},
      {"<CLI/CLI.hpp>", {"tools/gsa/main.cc", "tools/gsa/options.h"}, {"src/engine/engine.cc"}},
      {"<histedit.h>", {"tools/gsa/line_editor.cc"}, {"tools/gsa/chat.cc", "src/engine/x.cc"}},
      {"\"hwy/highway.h\"",
       {"kernels/cpu/x.cc", "tests/kernels/x_test.cc"},
       {"kernels/x.cc", "src/model/x.cc", "tests/model/x_test.cc"}},
      {"<vector>", {"kernels/x.cc", "src/model/x.cc", "tools/gsa/x.cc", "tests/model/x.cc"}, {}},
  };
  for (const Library& library : libraries) {
    const std::string line = std::string("#include ") + library.include + "\n";
    for (const std::string& path : library.right) EXPECT_THAT(check(path, line), IsEmpty()) << path;
    for (const std::string& path : library.wrong)
      EXPECT_FALSE(check(path, line).empty()) << path << line;
  }
}

TEST(Layering, RefusesLongFiles) {
  EXPECT_THAT(check("src/model/x.cc", std::string(kLineLimit - 1, '\n')), IsEmpty());
  EXPECT_THAT(check("src/model/x.cc", std::string(kLineLimit, '\n')),
              ElementsAre(HasSubstr("450 lines")));
  EXPECT_THAT(check("tools/script", std::string(kLineLimit, '\n')), testing::SizeIs(1));
}

}  // namespace
