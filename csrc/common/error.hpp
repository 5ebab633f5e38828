// The errors that kernels throw; bindings/module.cpp maps each to its class in flyweight.errors.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace flyweight {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An argument has a wrong value, shape or range.
class InvalidArgument final : public Error {
 public:
  using Error::Error;
};

/// Coded bytes break a rule of the format.
class CorruptStream final : public Error {
 public:
  using Error::Error;
};

/// Well formed, but of a kind that this build cannot handle.
class Unsupported final : public Error {
 public:
  using Error::Error;
};

/// The result does not fit into the buffer that was given.
class BudgetExceeded final : public Error {
 public:
  using Error::Error;
};

/// Throws `E` with the parts joined into one message. Pass bytes as integers, not as characters.
template <class E, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw E(text.str());
}

}  // namespace flyweight
