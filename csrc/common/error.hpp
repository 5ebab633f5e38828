// The errors that kernels throw; bindings/module.cpp maps each to its class in flyweight.errors.
#pragma once

#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>
#include <string_view>

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

namespace detail {

template <class Part>
void append(std::string& text, const Part& part) {
  if constexpr (std::convertible_to<const Part&, std::string_view>) {
    text += std::string_view(part);
  } else {  // no iostream: locales of a second, statically linked libstdc++ crash in a process
    char digits[32];
    text.append(digits, std::to_chars(digits, digits + sizeof digits, part).ptr);
  }
}

}  // namespace detail

/// Throws `E` with the parts joined into one message: text and numbers, bytes as integers.
template <class E, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::string text;
  (detail::append(text, parts), ...);
  throw E(text);
}

}  // namespace flyweight
