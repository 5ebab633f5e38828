// Unaligned little-endian loads and stores.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstring>

namespace flyweight {

static_assert(std::endian::native == std::endian::little,
              "streams are little-endian and so is every machine supported so far");

template <std::unsigned_integral T>
T load_le(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <std::unsigned_integral T>
void store_le(std::byte* to, T value) noexcept {
  std::memcpy(to, &value, sizeof value);
}

}  // namespace flyweight
