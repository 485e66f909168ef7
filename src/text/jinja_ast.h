#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "text/jinja_value.h"

namespace gsa::jinja {

// How deep expressions and statements may be nested in a template.
inline constexpr int kMaxNesting = 100;

struct Expression {
  enum Kind {
    kConstant,     // value
    kName,         // name
    kCaptured,     // what the body of a {% set %} block printed
    kList,         // children: elements; name: "tuple" for one
    kDict,         // children: key, value, key, value, ...
    kAttribute,    // children: object; name
    kItem,         // children: object, index
    kSlice,        // children: object, begin, end, step; an absent one is kConstant of undefined
    kCall,         // children: callee, arguments
    kFilter,       // children: value, arguments; name
    kTest,         // children: value, arguments; name
    kUnary,        // children: one; name: "not", "-" or "+"
    kBinary,       // children: two; name: the operator, "and" and "or" with them
    kCompare,      // children: operands; operators between them
    kConcatenate,  // children: operands of ~
    kConditional,  // children: value, condition, other value (or none)
  };

  Kind kind;
  int line;
  std::string name = {};
  Value value = {};
  std::vector<Expression> children = {};
  std::vector<std::string> operators = {};
  // Of the last arguments of a call, filter or test, those given by name.
  std::vector<std::string> keywords = {};
  int depth = 1;  // of the tree
};

struct Statement {
  enum Kind {
    kText,        // text
    kPrint,       // expressions: one
    kFor,         // names: targets; expressions: what is iterated, the filter or none; body, other
    kIf,          // expressions: conditions; branches: as many bodies, and one more for else
    kSet,         // names; expressions: value
    kSetMember,   // names: object, attribute; expressions: value
    kSetBlock,    // names: one; expressions: filters over kCaptured, or none; body
    kMacro,       // names: itself, parameters; expressions: defaults of the last parameters; body
    kGeneration,  // body
    kBreak,
    kContinue,
  };

  Kind kind;
  int line;
  Text text = {};
  std::vector<std::string> names = {};
  std::vector<Expression> expressions = {};
  std::vector<std::vector<Statement>> branches = {};  // body first, then else
};

struct Program {
  std::vector<Statement> statements;
};

// Throws gsa::Error naming line and construct.
Program parse(std::string_view source);

}  // namespace gsa::jinja
