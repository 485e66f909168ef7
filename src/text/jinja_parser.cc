#include "text/jinja_parser.h"

#include <algorithm>
#include <array>

#include "checkpoint/json.h"

namespace gsa::jinja {
namespace {

// Tags of Jinja that templates of chats do not need.
constexpr std::array<std::string_view, 14> kUnsupportedTags = {
    "raw",     "call",  "filter",     "with",  "include", "import", "from",
    "extends", "block", "autoescape", "trans", "debug",   "do",     "pluralize"};

}  // namespace

const Token& Parser::next() {
  const Token& token = tokens_[at_];
  if (token.kind != Token::kEnd) ++at_;
  return token;
}

bool Parser::skip_op(std::string_view text) {
  if (!token().op(text)) return false;
  next();
  return true;
}

bool Parser::skip_name(std::string_view text) {
  if (!token().name(text)) return false;
  next();
  return true;
}

void Parser::expect_op(std::string_view text) {
  if (!skip_op(text)) unexpected(fmt::format("\"{}\"", text));
}

std::string Parser::expect_name() {
  if (token().kind != Token::kName) unexpected("a name");
  return next().text;
}

void Parser::expect_block_end() {
  if (token().kind != Token::kBlockEnd) unexpected("\"%}\"");
  next();
}

void Parser::unexpected(std::string_view expected) const {
  fail(token().line, "unexpected {}, expected {}", token().describe(), expected);
}

std::vector<Statement> Parser::program() {
  std::vector<Statement> statements = body({}, 1);
  if (token().kind != Token::kEnd) unexpected("the end");
  return statements;
}

// Statements up to a tag of one of `ends`, whose "{%" and name are consumed; the name is left in
// end_tag_. Up to the end of the template where there are no ends.
// `line` is that of the block's own tag.
std::vector<Statement> Parser::body(std::initializer_list<std::string_view> ends, int line) {
  const Nesting nesting(*this);
  std::vector<Statement> statements;
  while (token().kind != Token::kEnd) {
    const Token& first = next();
    if (first.kind == Token::kData) {
      statements.push_back({Statement::kText, first.line, Text(first.text)});
    } else if (first.kind == Token::kVariableBegin) {
      statements.push_back({Statement::kPrint, first.line});
      statements.back().expressions.push_back(tuple(true));
      if (token().kind != Token::kVariableEnd) unexpected("\"}}\"");
      next();
    } else {
      if (token().kind != Token::kName) unexpected("a tag");
      const std::string name = next().text;
      if (std::find(ends.begin(), ends.end(), name) != ends.end()) {
        end_tag_ = name;
        return statements;
      }
      statements.push_back(tag(name, first.line));
    }
  }
  if (ends.size() > 0)
    fail(line, "the block that begins here has no {{% {} %}}", *(ends.end() - 1));
  return statements;
}

Statement Parser::tag(const std::string& name, int line) {
  if (name == "for") return for_tag(line);
  if (name == "if") return if_tag(line);
  if (name == "set") return set_tag(line);
  if (name == "macro") return macro_tag(line);
  if (name == "generation") {
    Statement statement{Statement::kGeneration, line};
    expect_block_end();
    statement.branches.push_back(body({"endgeneration"}, line));
    expect_block_end();
    return statement;
  }
  if (name == "break" || name == "continue") {
    if (loops_ == 0) fail(line, "{{% {} %}} outside of a loop", name);
    expect_block_end();
    return {name == "break" ? Statement::kBreak : Statement::kContinue, line};
  }
  if (std::find(kUnsupportedTags.begin(), kUnsupportedTags.end(), name) != kUnsupportedTags.end()) {
    fail(line, "the tag \"{}\" is not supported", name);
  }
  fail(line, "unknown tag \"{}\"", printable(name));
}

std::string Parser::target() {
  const int line = token().line;
  const std::string name = expect_name();
  for (std::string_view keyword : {"true", "false", "none", "True", "False", "None", "not"}) {
    if (name == keyword) fail(line, "\"{}\" cannot be assigned to", name);
  }
  return name;
}

std::vector<std::string> Parser::targets() {
  const bool open = skip_op("(");
  std::vector<std::string> names = {target()};
  while (skip_op(",")) {
    if (token().kind == Token::kName && !token().name("in")) names.push_back(target());
  }
  if (open) expect_op(")");
  return names;
}

Statement Parser::for_tag(int line) {
  Statement statement{Statement::kFor, line};
  statement.names = targets();
  if (!skip_name("in")) unexpected("\"in\"");
  statement.expressions.push_back(tuple(false));
  if (skip_name("if")) statement.expressions.push_back(expression());
  if (token().name("recursive")) fail(line, "a recursive loop is not supported");
  expect_block_end();
  ++loops_;
  statement.branches.push_back(body({"else", "endfor"}, line));
  --loops_;
  if (end_tag_ == "else") {
    expect_block_end();
    statement.branches.push_back(body({"endfor"}, line));
  }
  expect_block_end();
  return statement;
}

Statement Parser::if_tag(int line) {
  Statement statement{Statement::kIf, line};
  do {
    statement.expressions.push_back(tuple(true));
    expect_block_end();
    statement.branches.push_back(body({"elif", "else", "endif"}, line));
  } while (end_tag_ == "elif");
  if (end_tag_ == "else") {
    expect_block_end();
    statement.branches.push_back(body({"endif"}, line));
  }
  expect_block_end();
  return statement;
}

Statement Parser::set_tag(int line) {
  Statement statement{Statement::kSet, line};
  statement.names = targets();
  if (statement.names.size() == 1 && skip_op(".")) {
    statement.kind = Statement::kSetMember;
    statement.names.push_back(expect_name());
  }
  if (skip_op("=")) {
    statement.expressions.push_back(tuple(true));
    expect_block_end();
    return statement;
  }
  if (statement.kind == Statement::kSetMember || statement.names.size() > 1) unexpected("\"=\"");
  statement.kind = Statement::kSetBlock;
  if (token().op("|")) {
    statement.expressions.push_back(postfix({Expression::kCaptured, line}, true));
  }
  expect_block_end();
  statement.branches.push_back(body({"endset"}, line));
  expect_block_end();
  return statement;
}

Statement Parser::macro_tag(int line) {
  Statement statement{Statement::kMacro, line};
  statement.names.push_back(target());
  expect_op("(");
  while (!skip_op(")")) {
    if (statement.names.size() > 1) expect_op(",");
    statement.names.push_back(target());
    if (skip_op("=")) {
      statement.expressions.push_back(expression());
    } else if (!statement.expressions.empty()) {
      fail(line, "a parameter without a default follows one with a default");
    }
  }
  expect_block_end();
  const int loops = std::exchange(loops_, 0);
  statement.branches.push_back(body({"endmacro"}, line));
  loops_ = loops;
  expect_block_end();
  return statement;
}

Program parse(std::string_view source) { return {Parser(tokenize(source)).program()}; }

}  // namespace gsa::jinja
