#include "checkpoint/json.h"

#include <gtest/gtest.h>

#include "tests/support/error_of.h"

namespace gsa {
namespace {

using test::error_of;

TEST(Json, NamesThePlaceOfASyntaxError) {
  EXPECT_EQ(error_of([] { parse_json("{\"a\": 1,\n \"b\" 2}", "f.json"); }),
            "f.json: not valid JSON at line 2, column 6");
  EXPECT_EQ(error_of([] { parse_json("", "f.json"); }),
            "f.json: not valid JSON at line 1, column 1");
  EXPECT_EQ(error_of([] { parse_json("{} x", "f.json"); }),
            "f.json: not valid JSON at line 1, column 4");
  EXPECT_EQ(error_of([] { parse_json("[NaN]", "f.json"); }),
            "f.json: not valid JSON at line 1, column 2");
}

TEST(Json, RefusesANumberThatNoDoubleHolds) {
  EXPECT_EQ(error_of([] { parse_json("[1e400]", "f.json"); }),
            "f.json: not valid JSON: a number is too large");
}

TEST(Json, RefusesAKeyThatAppearsTwice) {
  EXPECT_EQ(error_of([] { parse_json(R"({"a": {"x": 1, "x": 2}})", "f.json"); }),
            "f.json: \"x\" appears twice in one JSON object");
  EXPECT_NO_THROW(parse_json(R"({"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "x": 1})", "f.json"));
}

TEST(Json, RefusesDeepNesting) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_NO_THROW(parse_json(nested(32), "f.json"));
  EXPECT_EQ(error_of([&] { parse_json(nested(33), "f.json"); }),
            "f.json: JSON is nested deeper than 32 levels");
  EXPECT_EQ(error_of([&] { parse_json(std::string(1'000'000, '['), "f.json"); }),
            "f.json: JSON is nested deeper than 32 levels");
}

TEST(Json, ShowsTextOfAFileOnOneShortLine) {
  EXPECT_EQ(printable("a\nb\x01"), "a?b?");
  EXPECT_EQ(printable(std::string(100, 'x')), std::string(80, 'x') + "...");
  // A character of two bytes at the cut goes as a whole.
  EXPECT_EQ(printable(std::string(79, 'x') + "\xc3\xa9y"), std::string(79, 'x') + "...");
}

TEST(JsonObject, NamesFileFieldFoundAndExpected) {
  const nlohmann::json root = nlohmann::json::parse(
      R"({"text": "t", "int": 7, "float": 2.5, "list": [1, 2], "null": null, "big": 1e18})");
  const JsonObject json(root, "f.json");
  EXPECT_EQ(error_of([&] { json.integer("text", 1, 9); }),
            "f.json: field \"text\" is \"t\", expected an integer of 1 to 9");
  EXPECT_EQ(error_of([&] { json.integer("int", 8, 9); }),
            "f.json: field \"int\" is 7, expected an integer of 8 to 9");
  EXPECT_EQ(error_of([&] { json.integer("float", 1, 9); }),
            "f.json: field \"float\" is 2.5, expected an integer of 1 to 9");
  EXPECT_EQ(error_of([&] { json.integer("none", 1, 9); }), "f.json: field \"none\" is missing");
  EXPECT_EQ(error_of([&] { json.number("big", 0, 1); }),
            "f.json: field \"big\" is 1e+18, expected a number of 0 to 1");
  EXPECT_EQ(error_of([&] { json.boolean("int"); }),
            "f.json: field \"int\" is 7, expected true or false");
  EXPECT_EQ(error_of([&] { json.string("list"); }),
            "f.json: field \"list\" is a list, expected a string");
  EXPECT_EQ(error_of([&] { json.integers("list", 2, 9); }),
            "f.json: field \"list\" holds 1, expected integers of 2 to 9");
  EXPECT_EQ(error_of([&] { json.integer_or("null", 1, 9, 5); }),
            "f.json: field \"null\" is null, expected an integer of 1 to 9");
}

TEST(JsonObject, RefusesAnIntegerBeyondInt64) {
  const nlohmann::json root = nlohmann::json::parse(R"({"n": 18446744073709551615})");
  EXPECT_EQ(error_of([&] { JsonObject(root, "f.json").integer("n", -1, 9); }),
            "f.json: field \"n\" is 18446744073709551615, expected an integer of -1 to 9");
}

TEST(JsonObject, RefusesWhatIsNoObject) {
  const nlohmann::json root = nlohmann::json::parse("[1]");
  EXPECT_EQ(error_of([&] { JsonObject(root, "f.json"); }),
            "f.json: expected a JSON object, found a list");
}

}  // namespace
}  // namespace gsa
