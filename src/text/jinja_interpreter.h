#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "text/chat_template.h"
#include "text/jinja_ast.h"
#include "text/jinja_call.h"

namespace gsa::jinja {

// One rendering of a template. Statements stand in jinja_interpreter.cc, expressions in
// jinja_evaluate.cc.
class Interpreter {
 public:
  // `program` must outlive it.
  Interpreter(const Program& program, std::span<const ChatMessage> messages,
              const ChatTemplate::Options& options);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // Throws gsa::Error naming line and construct.
  Text run();

 private:
  enum class Flow { kNext, kBreak, kContinue };

  struct Scope {
    Scope* parent;
    std::map<std::string, Value, std::less<>> variables = {};
  };

  // A scope within the present one (or another) for as long as it lives.
  class Inside {
   public:
    Inside(Interpreter& interpreter, Scope* parent)
        : interpreter_(interpreter), before_(interpreter.scope_), scope_{parent} {
      interpreter.scope_ = &scope_;
    }
    ~Inside() { interpreter_.scope_ = before_; }

   private:
    Interpreter& interpreter_;
    Scope* before_;
    Scope scope_;
  };

  // A level of evaluation, which is bounded since macros may call each other.
  class Level {
   public:
    Level(Interpreter& interpreter, int line);
    ~Level() { --interpreter_.level_; }

   private:
    Interpreter& interpreter_;
  };

  Flow execute(const std::vector<Statement>& statements);
  Flow execute(const Statement& statement);
  Flow loop(const Statement& statement);
  Flow branch(const Statement& statement);
  void set(const Statement& statement);
  Text capture(const std::vector<Statement>& statements);
  void print(const Text& text, int line);
  void assign(const std::vector<std::string>& names, const Value& value, int line);
  Value loop_value(const std::vector<Value>& items, size_t index) const;

  Value evaluate(const Expression& expression);
  Value lookup(const Expression& expression) const;
  Value binary(const Expression& expression);
  Value add(const Value& a, const Value& b, int line);
  Value arithmetic(const std::string& op, const Value& a, const Value& b, int line);
  Value unary(const Expression& expression);
  Value compare(const Expression& expression);
  bool holds(const std::string& op, const Value& a, const Value& b, int line);
  Value concatenate(const Expression& expression);
  Value slice(const Expression& expression);
  Value dict(const Expression& expression);
  Value call(const Expression& expression);
  Value call_macro(const Statement& macro, Arguments& arguments);
  Value call_function(const std::string& name, Arguments& arguments);
  Arguments arguments(const Expression& expression, std::string construct);

  const Program& program_;
  const ChatTemplate::Options& options_;
  Budget budget_;
  size_t output_limit_;
  Scope globals_{nullptr};
  Scope* scope_ = &globals_;
  Text* out_ = nullptr;
  int level_ = 0;
  Value captured_;  // by a {% set %} block, for its filters
  // A namespace can hold itself, so they are emptied at the end.
  std::vector<std::shared_ptr<Namespace>> namespaces_;
};

}  // namespace gsa::jinja
