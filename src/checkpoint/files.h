#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace gsa {

// A whole file mapped into memory, read-only.
struct FileMapping {
  std::shared_ptr<const void> owner;  // unmaps when the last copy goes
  std::string_view bytes;
};

// Throws gsa::Error where `path` is missing, unreadable or no regular file. An empty file gives
// empty bytes.
FileMapping map_file(const std::filesystem::path& path);

// Tells the system that pages lying wholly within [data, data + bytes) of a file mapping are not
// needed for now, so they stop counting as resident. They may be read again.
void drop_pages(const void* data, size_t bytes);

// Throws gsa::Error where a file of this name could not be written: it is a folder, or its folder
// is missing or not writable. For an early word; the writing may still fail.
void check_writable(const std::filesystem::path& file);

// The whole of a small file; throws gsa::Error as map_file, and where it is larger than `limit`.
std::string read_file(const std::filesystem::path& path, size_t limit);

}  // namespace gsa
