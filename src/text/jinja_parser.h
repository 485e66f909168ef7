#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_lexer.h"

namespace gsa::jinja {

// Recursive descent over the tokens of a template. Every method that parses something throws
// gsa::Error naming line and construct. Statements stand in jinja_parser.cc, expressions in
// jinja_expressions.cc.
class Parser {
 public:
  // REQUIRES: the last token is kEnd.
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  std::vector<Statement> program();

 private:
  // Counts a level for as long as it lives.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.nesting_ > kMaxNesting) parser_.too_deep(parser_.token().line);
    }
    ~Nesting() { --parser_.nesting_; }

   private:
    Parser& parser_;
  };

  const Token& token() const { return tokens_[at_]; }
  const Token& next();
  bool skip_op(std::string_view text);
  bool skip_name(std::string_view text);
  void expect_op(std::string_view text);
  std::string expect_name();
  void expect_block_end();
  [[noreturn]] void unexpected(std::string_view expected) const;
  [[noreturn]] void too_deep(int line) const;

  std::vector<Statement> body(std::initializer_list<std::string_view> ends, int line);
  Statement tag(const std::string& name, int line);
  std::string target();
  std::vector<std::string> targets();
  Statement for_tag(int line);
  Statement if_tag(int line);
  Statement set_tag(int line);
  Statement macro_tag(int line);

  // A level of Jinja's grammar each, loosest first.
  Expression tuple(bool conditional);
  Expression expression();
  Expression disjunction();
  Expression conjunction();
  Expression negation();
  Expression comparison();
  Expression sum();
  Expression concatenation();
  Expression product();
  Expression power();
  Expression unary(bool filters);
  Expression primary();
  Expression list();
  Expression dict();
  Expression postfix(Expression value, bool filters);
  Expression subscript(Expression value);
  Expression test(Expression value);
  void arguments(Expression& call);
  bool at_argument_of_test() const;

  // The expression with its depth, which is bounded.
  Expression finish(Expression expression) const;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
  std::string end_tag_;
};

}  // namespace gsa::jinja
