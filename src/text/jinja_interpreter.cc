#include "text/jinja_interpreter.h"

#include <algorithm>
#include <array>

#include "checkpoint/json.h"
#include "text/utf8.h"

namespace gsa::jinja {
namespace {

constexpr int kMaxLevel = 300;

// Roles that no user makes up.
constexpr std::array<std::string_view, 8> kRoles = {
    "system", "user", "assistant", "tool", "developer", "function", "model", "ipython"};

constexpr std::array<std::string_view, 5> kFunctions = {"raise_exception", "strftime_now",
                                                        "namespace", "range", "dict"};

size_t bytes_of(std::span<const ChatMessage> messages) {
  size_t bytes = 0;
  for (const ChatMessage& message : messages) bytes += message.role.size() + message.content.size();
  return bytes;
}

Value message_value(const ChatMessage& message) {
  const bool known = std::find(kRoles.begin(), kRoles.end(), message.role) != kRoles.end();
  return make_dict({{Text("role"), Text(repair_utf8(message.role), !known)},
                    {Text("content"), Text(repair_utf8(message.content), true)}});
}

}  // namespace

Interpreter::Interpreter(const Program& program, std::span<const ChatMessage> messages,
                         const ChatTemplate::Options& options)
    : program_(program),
      options_(options),
      // Up to three bytes stand for one that is no UTF-8.
      budget_(messages.size(), 3 * bytes_of(messages)),
      output_limit_((size_t{4} << 20) + 16 * bytes_of(messages)) {
  std::vector<Value> list;
  for (const ChatMessage& message : messages) list.push_back(message_value(message));
  auto& variables = globals_.variables;
  variables["messages"] = make_list(std::move(list));
  variables["add_generation_prompt"] = Value(options.add_generation_prompt);
  variables["tools"] = variables["documents"] = Value(None{});
  if (!options.bos_token.empty()) variables["bos_token"] = Value::text(options.bos_token);
  if (!options.eos_token.empty()) variables["eos_token"] = Value::text(options.eos_token);
  for (std::string_view name : kFunctions) {
    variables[std::string(name)] =
        std::make_shared<const Callable>(Callable{std::string(name), nullptr, std::nullopt});
  }
}

Interpreter::~Interpreter() {
  for (const std::shared_ptr<Namespace>& space : namespaces_) space->members.clear();
}

Interpreter::Level::Level(Interpreter& interpreter, int line) : interpreter_(interpreter) {
  interpreter.budget_.steps(line);
  if (interpreter.level_ >= kMaxLevel) fail(line, "evaluation is deeper than {}", kMaxLevel);
  ++interpreter.level_;
}

Text Interpreter::run() {
  Text out;
  out_ = &out;
  execute(program_.statements);
  return out;
}

Interpreter::Flow Interpreter::execute(const std::vector<Statement>& statements) {
  for (const Statement& statement : statements) {
    const Flow flow = execute(statement);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::execute(const Statement& statement) {
  const Level level(*this, statement.line);
  switch (statement.kind) {
    case Statement::kText:
      print(statement.text, statement.line);
      break;
    case Statement::kPrint:
      print(to_text(evaluate(statement.expressions[0])), statement.line);
      break;
    case Statement::kFor:
      return loop(statement);
    case Statement::kIf:
      return branch(statement);
    case Statement::kSet:
    case Statement::kSetMember:
    case Statement::kSetBlock:
      set(statement);
      break;
    case Statement::kMacro:
      scope_->variables[statement.names[0]] =
          std::make_shared<const Callable>(Callable{statement.names[0], &statement, std::nullopt});
      break;
    case Statement::kGeneration: {
      const Inside scope(*this, scope_);
      return execute(statement.branches[0]);
    }
    case Statement::kBreak:
      return Flow::kBreak;
    case Statement::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

void Interpreter::print(const Text& text, int line) {
  budget_.bytes(line, text.size());
  if (out_->size() + text.size() > output_limit_) fail(line, "the prompt becomes too long");
  out_->append(text);
}

Interpreter::Flow Interpreter::branch(const Statement& statement) {
  for (size_t i = 0; i < statement.expressions.size(); ++i) {
    if (evaluate(statement.expressions[i]).truth()) return execute(statement.branches[i]);
  }
  const bool has_else = statement.branches.size() > statement.expressions.size();
  return has_else ? execute(statement.branches.back()) : Flow::kNext;
}

Interpreter::Flow Interpreter::loop(const Statement& statement) {
  std::vector<Value> items = iterate(evaluate(statement.expressions[0]), statement.line, budget_);
  if (statement.expressions.size() > 1) {
    std::vector<Value> kept;
    for (const Value& item : items) {
      const Inside scope(*this, scope_);
      assign(statement.names, item, statement.line);
      if (evaluate(statement.expressions[1]).truth()) kept.push_back(item);
    }
    items = std::move(kept);
  }
  bool completed = false;  // an iteration, with no break or continue, as Jinja counts for "else"
  for (size_t i = 0; i < items.size(); ++i) {
    budget_.steps(statement.line, 16);
    const Inside scope(*this, scope_);
    scope_->variables["loop"] = loop_value(items, i);
    assign(statement.names, items[i], statement.line);
    const Flow flow = execute(statement.branches[0]);
    if (flow == Flow::kBreak) break;
    completed = completed || flow == Flow::kNext;
  }
  if (completed || statement.branches.size() == 1) return Flow::kNext;
  const Inside scope(*this, scope_);
  return execute(statement.branches[1]);
}

Value Interpreter::loop_value(const std::vector<Value>& items, size_t index) const {
  const auto at = static_cast<int64_t>(index), size = static_cast<int64_t>(items.size());
  return make_dict({
      {Text("index"), Value(at + 1)},
      {Text("index0"), Value(at)},
      {Text("revindex"), Value(size - at)},
      {Text("revindex0"), Value(size - at - 1)},
      {Text("first"), Value(at == 0)},
      {Text("last"), Value(at == size - 1)},
      {Text("length"), Value(size)},
      {Text("previtem"), index > 0 ? items[index - 1] : Value(Undefined{"loop.previtem"})},
      {Text("nextitem"), at < size - 1 ? items[index + 1] : Value(Undefined{"loop.nextitem"})},
      {Text("cycle"), std::make_shared<const Callable>(Callable{"loop.cycle", nullptr, Value(at)})},
  });
}

void Interpreter::assign(const std::vector<std::string>& names, const Value& value, int line) {
  if (names.size() == 1) {
    scope_->variables[names[0]] = value;
    return;
  }
  const std::vector<Value> elements = iterate(value, line, budget_);
  if (elements.size() != names.size()) {
    fail(line, "{} values for {} names", elements.size(), names.size());
  }
  for (size_t i = 0; i < names.size(); ++i) scope_->variables[names[i]] = elements[i];
}

void Interpreter::set(const Statement& statement) {
  if (statement.kind == Statement::kSetBlock) {
    Value value = capture(statement.branches[0]);
    if (!statement.expressions.empty()) {
      captured_ = std::move(value);
      value = evaluate(statement.expressions[0]);
    }
    scope_->variables[statement.names[0]] = std::move(value);
    return;
  }
  Value value = evaluate(statement.expressions[0]);
  if (statement.kind == Statement::kSet) {
    assign(statement.names, value, statement.line);
    return;
  }
  const std::string& name = statement.names[0];
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    const auto variable = scope->variables.find(name);
    if (variable == scope->variables.end()) continue;
    Namespace* space = variable->second.name_space();
    if (space == nullptr) {
      fail(statement.line, "\"{}\" is {}, expected a namespace", printable(name),
           variable->second.type());
    }
    space->members[statement.names[1]] = std::move(value);
    return;
  }
  fail(statement.line, "\"{}\" is undefined", printable(name));
}

// What the statements print, in a scope of their own.
Text Interpreter::capture(const std::vector<Statement>& statements) {
  Text text;
  Text* const before = std::exchange(out_, &text);
  try {
    const Inside scope(*this, scope_);
    execute(statements);
  } catch (...) {
    out_ = before;
    throw;
  }
  out_ = before;
  return text;
}

}  // namespace gsa::jinja
