#include <algorithm>
#include <array>
#include <charconv>

#include "checkpoint/json.h"
#include "text/jinja_parser.h"

namespace gsa::jinja {
namespace {

template <size_t N>
bool is_one_of(const Token& token, const std::array<std::string_view, N>& operators) {
  return token.kind == Token::kOperator &&
         std::find(operators.begin(), operators.end(), token.text) != operators.end();
}

template <typename T>
T number(const Token& token) {
  T value{};
  const auto [end, error] =
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
  if (error != std::errc()) fail(token.line, "the number {} is too large", printable(token.text));
  return value;
}

}  // namespace

void Parser::too_deep(int line) const { fail(line, "nested deeper than {} levels", kMaxNesting); }

Expression Parser::finish(Expression expression) const {
  for (const Expression& child : expression.children) {
    expression.depth = std::max(expression.depth, child.depth + 1);
  }
  if (expression.depth > kMaxNesting) too_deep(expression.line);
  return expression;
}

// One expression, or several with commas between them.
Expression Parser::tuple(bool conditional) {
  const int line = token().line;
  const auto element = [&] { return conditional ? expression() : disjunction(); };
  Expression first = element();
  if (!token().op(",")) return first;
  Expression list{Expression::kList, line, "tuple"};
  list.children.push_back(std::move(first));
  while (skip_op(",")) {
    if (token().kind == Token::kBlockEnd || token().kind == Token::kVariableEnd ||
        token().op(")")) {
      break;
    }
    list.children.push_back(element());
  }
  return finish(std::move(list));
}

Expression Parser::expression() {
  const Nesting nesting(*this);
  Expression value = disjunction();
  while (token().name("if")) {
    Expression conditional{Expression::kConditional, next().line};
    conditional.children.push_back(std::move(value));
    conditional.children.push_back(disjunction());
    if (skip_name("else")) conditional.children.push_back(expression());
    value = finish(std::move(conditional));
  }
  return value;
}

Expression Parser::disjunction() {
  Expression left = conjunction();
  while (token().name("or")) {
    Expression both{Expression::kBinary, next().line, "or"};
    both.children.push_back(std::move(left));
    both.children.push_back(conjunction());
    left = finish(std::move(both));
  }
  return left;
}

Expression Parser::conjunction() {
  Expression left = negation();
  while (token().name("and")) {
    Expression both{Expression::kBinary, next().line, "and"};
    both.children.push_back(std::move(left));
    both.children.push_back(negation());
    left = finish(std::move(both));
  }
  return left;
}

Expression Parser::negation() {
  if (!token().name("not")) return comparison();
  const Nesting nesting(*this);
  Expression result{Expression::kUnary, next().line, "not"};
  result.children.push_back(negation());
  return finish(std::move(result));
}

Expression Parser::comparison() {
  static constexpr std::array<std::string_view, 6> kComparisons = {"==", "!=", "<",
                                                                   "<=", ">",  ">="};
  Expression result{Expression::kCompare, token().line};
  result.children.push_back(sum());
  for (;;) {
    if (is_one_of(token(), kComparisons)) {
      result.operators.push_back(next().text);
    } else if (skip_name("in")) {
      result.operators.push_back("in");
    } else if (token().name("not") && tokens_[at_ + 1].name("in")) {
      at_ += 2;
      result.operators.push_back("not in");
    } else {
      break;
    }
    result.children.push_back(sum());
  }
  if (result.operators.empty()) return std::move(result.children.front());
  return finish(std::move(result));
}

Expression Parser::sum() {
  Expression left = concatenation();
  while (token().op("+") || token().op("-")) {
    const Token& op = next();
    Expression both{Expression::kBinary, op.line, op.text};
    both.children.push_back(std::move(left));
    both.children.push_back(concatenation());
    left = finish(std::move(both));
  }
  return left;
}

Expression Parser::concatenation() {
  Expression result{Expression::kConcatenate, token().line};
  result.children.push_back(product());
  while (skip_op("~")) result.children.push_back(product());
  if (result.children.size() == 1) return std::move(result.children.front());
  return finish(std::move(result));
}

Expression Parser::product() {
  static constexpr std::array<std::string_view, 4> kProducts = {"*", "/", "//", "%"};
  Expression left = power();
  while (is_one_of(token(), kProducts)) {
    const Token& op = next();
    Expression both{Expression::kBinary, op.line, op.text};
    both.children.push_back(std::move(left));
    both.children.push_back(power());
    left = finish(std::move(both));
  }
  return left;
}

Expression Parser::power() {
  Expression base = unary(true);
  if (token().op("**")) fail(token().line, "the operator ** is not supported");
  return base;
}

Expression Parser::unary(bool filters) {
  const Nesting nesting(*this);
  if (!token().op("-") && !token().op("+")) return postfix(primary(), filters);
  const Token& op = next();
  Expression result{Expression::kUnary, op.line, op.text};
  result.children.push_back(unary(false));
  return postfix(finish(std::move(result)), filters);
}

Expression Parser::primary() {
  const Token& first = token();
  Expression result{Expression::kConstant, first.line};
  if (first.kind == Token::kName) {
    static constexpr std::array<std::string_view, 8> kKeywords = {"if", "else", "and", "or",
                                                                  "in", "is",   "not", "elif"};
    if (std::find(kKeywords.begin(), kKeywords.end(), first.text) != kKeywords.end()) {
      unexpected("an expression");
    }
    next();
    const std::string& name = first.text;
    if (name == "true" || name == "True") {
      result.value = Value(true);
    } else if (name == "false" || name == "False") {
      result.value = Value(false);
    } else if (name == "none" || name == "None") {
      result.value = Value(None{});
    } else {
      result.kind = Expression::kName;
      result.name = name;
    }
    return result;
  }
  if (first.kind == Token::kString) {
    std::string text;
    while (token().kind == Token::kString) text += next().text;
    result.value = Value::text(text);
    return result;
  }
  if (first.kind == Token::kInteger) {
    result.value = Value(number<int64_t>(next()));
    return result;
  }
  if (first.kind == Token::kFloat) {
    result.value = Value(number<double>(next()));
    return result;
  }
  if (first.op("[")) return list();
  if (first.op("{")) return dict();
  if (!skip_op("(")) unexpected("an expression");
  if (skip_op(")")) return {Expression::kList, first.line, "tuple"};
  result = tuple(true);
  expect_op(")");
  return result;
}

Expression Parser::list() {
  Expression result{Expression::kList, next().line};
  while (!skip_op("]")) {
    if (!result.children.empty()) {
      expect_op(",");
      if (skip_op("]")) break;
    }
    result.children.push_back(expression());
  }
  return finish(std::move(result));
}

Expression Parser::dict() {
  Expression result{Expression::kDict, next().line};
  while (!skip_op("}")) {
    if (!result.children.empty()) {
      expect_op(",");
      if (skip_op("}")) break;
    }
    result.children.push_back(expression());
    expect_op(":");
    result.children.push_back(expression());
  }
  return finish(std::move(result));
}

// Attributes, subscripts and calls after a value, and filters and tests where they may follow.
Expression Parser::postfix(Expression value, bool filters) {
  for (;;) {
    const int line = token().line;
    if (skip_op(".")) {
      Expression result{Expression::kAttribute, line};
      if (token().kind == Token::kInteger) {
        result.kind = Expression::kItem;
        result.children = {std::move(value), {Expression::kConstant, line}};
        result.children.back().value = Value(number<int64_t>(next()));
      } else {
        result.name = expect_name();
        result.children.push_back(std::move(value));
      }
      value = finish(std::move(result));
    } else if (token().op("[")) {
      value = subscript(std::move(value));
    } else if (token().op("(")) {
      Expression call{Expression::kCall, line};
      call.children.push_back(std::move(value));
      arguments(call);
      value = finish(std::move(call));
    } else if (filters && skip_op("|")) {
      Expression filter{Expression::kFilter, line, expect_name()};
      filter.children.push_back(std::move(value));
      if (token().op("(")) arguments(filter);
      value = finish(std::move(filter));
    } else if (filters && skip_name("is")) {
      value = test(std::move(value));
    } else {
      return value;
    }
  }
}

Expression Parser::subscript(Expression value) {
  const int line = next().line;
  Expression bounds[3] = {
      {Expression::kConstant, line}, {Expression::kConstant, line}, {Expression::kConstant, line}};
  int part = 0;
  bool slice = false;
  while (!token().op("]")) {
    if (skip_op(":")) {
      slice = true;
      if (++part > 2) unexpected("\"]\"");
    } else {
      bounds[part] = expression();
      if (!token().op(":") && !token().op("]")) unexpected("\":\" or \"]\"");
    }
  }
  if (!slice && bounds[0].kind == Expression::kConstant && bounds[0].value.undefined()) {
    unexpected("an index");
  }
  next();
  Expression result{slice ? Expression::kSlice : Expression::kItem, line};
  result.children.push_back(std::move(value));
  for (int i = 0; i < (slice ? 3 : 1); ++i) result.children.push_back(std::move(bounds[i]));
  return finish(std::move(result));
}

bool Parser::at_argument_of_test() const {
  const Token& t = token();
  if (t.kind == Token::kName) {
    static constexpr std::array<std::string_view, 7> kKeywords = {"else", "or", "and", "is",
                                                                  "if",   "in", "not"};
    return std::find(kKeywords.begin(), kKeywords.end(), t.text) == kKeywords.end();
  }
  return t.kind == Token::kString || t.kind == Token::kInteger || t.kind == Token::kFloat ||
         t.op("[") || t.op("{");
}

Expression Parser::test(Expression value) {
  const int line = token().line;
  const bool negated = skip_name("not");
  Expression result{Expression::kTest, line, expect_name()};
  result.children.push_back(std::move(value));
  if (token().op("(")) {
    arguments(result);
  } else if (at_argument_of_test()) {
    result.children.push_back(postfix(primary(), false));
  }
  result = finish(std::move(result));
  if (!negated) return result;
  Expression inverse{Expression::kUnary, line, "not"};
  inverse.children.push_back(std::move(result));
  return finish(std::move(inverse));
}

void Parser::arguments(Expression& call) {
  const Nesting nesting(*this);
  expect_op("(");
  const size_t first = call.children.size();
  while (!skip_op(")")) {
    if (call.children.size() > first) {
      expect_op(",");
      if (skip_op(")")) break;
    }
    if (token().op("*") || token().op("**")) {
      fail(token().line, "arguments with * and ** are not supported");
    }
    if (token().kind == Token::kName && tokens_[at_ + 1].op("=")) {
      call.keywords.push_back(next().text);
      next();
    } else if (!call.keywords.empty()) {
      fail(token().line, "an argument without a name follows one with a name");
    }
    call.children.push_back(expression());
  }
}

}  // namespace gsa::jinja
