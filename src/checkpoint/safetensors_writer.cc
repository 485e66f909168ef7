#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "checkpoint/json.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/safetensors_format.h"
#include "kernels/error.h"

namespace gsa {
namespace {

constexpr size_t kHeaderAlignment = 64;

std::string json_string(const std::string& text, const std::string& name, std::string_view what) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error("{}: {} is not valid UTF-8", name, what);
  }
}

}  // namespace

struct SafetensorsWriter::File {
  struct Value {
    size_t offset, length;  // of a metadata string in the file, its quotes included
  };

  std::string name;  // of the destination, for errors
  std::filesystem::path destination;
  std::filesystem::path temporary;
  int fd = -1;
  uint64_t expected = 0;  // data bytes
  uint64_t written = 0;
  std::map<std::string, Value> metadata;

  ~File() {
    if (fd < 0) return;
    ::close(fd);
    ::unlink(temporary.c_str());
  }

  // A new file beside the destination, under a name that no other writer has.
  void create() {
    for (int attempt = 0; attempt < 1000; ++attempt) {
      temporary = destination;
      temporary += fmt::format(".{}-{}.tmp", ::getpid(), attempt);
      fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (fd >= 0) return;
      if (errno != EEXIST) break;
    }
    throw Error("{}: cannot be written: {}", name, std::strerror(errno));
  }

  void put(const char* data, size_t bytes) {
    while (bytes > 0) {
      const ssize_t n = ::write(fd, data, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw Error("{}: cannot be written: {}", name, std::strerror(errno));
      data += n;
      bytes -= static_cast<size_t>(n);
    }
  }
};

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<Entry> entries,
                                     const std::map<std::string, std::string>& metadata)
    : file_(std::make_unique<File>()) {
  file_->name = path.string();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    throw Error("{}: exists and is not a regular file", file_->name);
  }
  // A link keeps pointing where it does; the file behind it is replaced.
  file_->destination = path;
  if (std::filesystem::is_symlink(path, error)) {
    const auto target = std::filesystem::weakly_canonical(path, error);
    if (!error) file_->destination = target;
  }

  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    if (header.back() != '{') header += ',';
    header += json_string(key, file_->name, "a metadata key") + ':';
    const std::string text = json_string(value, file_->name, "metadata " + key);
    file_->metadata[key] = {sizeof(uint64_t) + header.size(), text.size()};
    header += text;
  }
  if (!metadata.empty()) header += '}';
  for (const Entry& entry : entries) {
    uint64_t bytes = dtype_bytes(entry.dtype);
    for (int64_t dim : entry.shape) bytes *= static_cast<uint64_t>(dim);
    if (header.size() > 1) header += ',';
    header += json_string(entry.name, file_->name, "a tensor name");
    header += fmt::format(":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          safetensors_dtype(entry.dtype), fmt::join(entry.shape, ","),
                          file_->expected, file_->expected + bytes);
    file_->expected += bytes;
  }
  header += '}';
  while ((sizeof(uint64_t) + header.size()) % kHeaderAlignment != 0) header += ' ';

  file_->create();
  const uint64_t size = header.size();
  file_->put(reinterpret_cast<const char*>(&size), sizeof(size));
  file_->put(header.data(), header.size());
}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::write(const void* data, size_t bytes) {
  if (bytes > file_->expected - file_->written) {
    throw Error("{}: more tensor data given than declared, {} bytes", file_->name, file_->expected);
  }
  file_->put(static_cast<const char*>(data), bytes);
  file_->written += bytes;
}

void SafetensorsWriter::replace_metadata(const std::string& key, const std::string& value) {
  const std::string text = json_string(value, file_->name, "metadata " + key);
  const auto it = file_->metadata.find(key);
  if (it == file_->metadata.end() || it->second.length != text.size()) {
    throw Error("{}: metadata {} was not declared with {} characters", file_->name, key,
                value.size());
  }
  if (::pwrite(file_->fd, text.data(), text.size(), static_cast<off_t>(it->second.offset)) !=
      static_cast<ssize_t>(text.size())) {
    throw Error("{}: cannot be written: {}", file_->name, std::strerror(errno));
  }
}

void SafetensorsWriter::finish() {
  if (file_->written != file_->expected) {
    throw Error("{}: {} bytes of tensor data given, {} declared", file_->name, file_->written,
                file_->expected);
  }
  if (::fsync(file_->fd) != 0) {
    throw Error("{}: cannot be written: {}", file_->name, std::strerror(errno));
  }
  if (::rename(file_->temporary.c_str(), file_->destination.c_str()) != 0) {
    throw Error("{}: cannot be renamed to: {}", file_->name, std::strerror(errno));
  }
  ::close(file_->fd);
  file_->fd = -1;
  // The new name is on disk only when its folder is. Some file systems cannot sync a folder; the
  // file itself is whole either way.
  std::filesystem::path folder = file_->destination.parent_path();
  if (folder.empty()) folder = ".";
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    ::fsync(fd);
    ::close(fd);
  }
}

}  // namespace gsa
