#include "checkpoint/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "kernels/error.h"

namespace gsa {

FileMapping map_file(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a named pipe must not wait for a writer, only to be refused below.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw Error("{}: cannot be opened: {}", path.string(), std::strerror(errno));
  struct stat info;
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw Error("{}: not a regular file", path.string());
  }
  const size_t size = static_cast<size_t>(info.st_size);
  if (size == 0) {
    ::close(fd);
    return {};
  }
  void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  const int error = errno;
  ::close(fd);
  if (data == MAP_FAILED) {
    throw Error("{}: cannot be mapped: {}", path.string(), std::strerror(error));
  }
  std::shared_ptr<const void> owner(data,
                                    [size](const void* p) { munmap(const_cast<void*>(p), size); });
  return {std::move(owner), {static_cast<const char*>(data), size}};
}

void drop_pages(const void* data, size_t bytes) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void check_writable(const std::filesystem::path& file) {
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) {
    throw Error("{}: a folder, expected the name of a file to write", file.string());
  }
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (!std::filesystem::is_directory(folder, error)) {
    throw Error("{}: cannot be written: there is no folder {}", file.string(), folder.string());
  }
  if (::access(folder.c_str(), W_OK) != 0) {
    throw Error("{}: cannot be written: {}", file.string(), std::strerror(errno));
  }
}

std::string read_file(const std::filesystem::path& path, size_t limit) {
  const FileMapping mapping = map_file(path);
  if (mapping.bytes.size() > limit) {
    throw Error("{}: {} bytes, expected at most {}", path.string(), mapping.bytes.size(), limit);
  }
  return std::string(mapping.bytes);
}

}  // namespace gsa
