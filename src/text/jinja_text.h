#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace gsa::jinja {

// UTF-8 text whose every byte knows whether it is the template's or a conversation's. Positions are
// bytes unless a name says characters.
class Text {
 public:
  Text() = default;
  // REQUIRES: valid UTF-8.
  explicit Text(std::string_view bytes, bool content = false)
      : bytes_(bytes), origin_(bytes.size(), content ? kContent : kTemplate) {}

  const std::string& bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  bool content(size_t position) const { return origin_[position] == kContent; }
  size_t characters() const;

  void append(const Text& other);
  void append(std::string_view bytes, bool content);
  Text substr(size_t begin, size_t count = std::string::npos) const;

  // By characters, with Python's rules for bounds that are absent, negative or outside.
  Text slice(std::optional<long> begin, std::optional<long> end, long step) const;
  std::vector<Text> split_characters() const;

  // White space as Python's str.strip() sees it, or the characters of `set`.
  Text strip(const std::optional<std::string>& set, bool left, bool right) const;

  // `count` < 0: every one. An empty `from` stands between any two characters.
  Text replace(const std::string& from, const Text& to, long count) const;

  // At white space as Python's str.split() without a separator.
  std::vector<Text> split_blanks(long max_splits) const;
  // REQUIRES: a separator that is not empty. From the right: the last max_splits places.
  std::vector<Text> split(const std::string& separator, long max_splits, bool from_right) const;
  std::vector<Text> split_lines(bool keep_ends) const;

  // ASCII letters change; nothing else may be a letter with case (see ascii()).
  enum class Case {
    kUpper,
    kLower,
    kCapitalize,
    kTitle,  // str.title(): a word is a run of letters
    kWords,  // the filter "title": a word begins at the start and after white space, -, (, {, [, <
  };
  Text with_case(Case what) const;
  bool ascii() const;

  bool operator==(const Text& other) const { return bytes_ == other.bytes_; }

 private:
  static constexpr char kTemplate = 0, kContent = 1;

  std::string bytes_;
  std::string origin_;  // of every byte
};

// Bytes of the character at `position`.
size_t character_bytes(std::string_view text, size_t position);

bool is_blank(std::string_view character);

// Position of `needle` from `from` on, in linear time; npos: not there.
size_t find_text(std::string_view text, std::string_view needle, size_t from = 0);

// Begin, end and step of a Python slice over `length` elements, as indices to visit.
std::vector<size_t> slice_indices(size_t length, std::optional<long> begin, std::optional<long> end,
                                  long step);

}  // namespace gsa::jinja
