// Size arithmetic that throws where it would wrap.
#pragma once

#include <cstddef>
#include <limits>
#include <utility>

#include "common/error.hpp"

namespace flyweight {

inline std::size_t checked_add(std::size_t a, std::size_t b) {
  if (a > std::numeric_limits<std::size_t>::max() - b) {
    fail<InvalidArgument>("size overflow: ", a, " + ", b);
  }
  return a + b;
}

inline std::size_t checked_mul(std::size_t a, std::size_t b) {
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / b) {
    fail<InvalidArgument>("size overflow: ", a, " * ", b);
  }
  return a * b;
}

/// `value` as a `To`, which must be able to hold it; `name` is for the message.
template <class To, class From>
To narrow(From value, const char* name) {
  if (!std::in_range<To>(value)) {
    fail<InvalidArgument>(name, "=", value, " is out of range");
  }
  return static_cast<To>(value);
}

/// Throws unless a buffer of `got` bytes can take `needed`.
inline void require_room(std::size_t needed, std::size_t got, const char* what) {
  if (got < needed) {
    fail<BudgetExceeded>(what, ": output needs ", needed, " bytes, got ", got);
  }
}

}  // namespace flyweight
