// IEEE 754 half precision, as bits.
#pragma once

#include <bit>
#include <cstdint>

namespace flyweight {

/// A bit pattern, as std::byte is one: no arithmetic.
enum class Float16 : std::uint16_t {};

/// The same number; every half is a float. NaNs keep their payload and become quiet.
inline float to_float32(Float16 half) noexcept {
  const auto bits = static_cast<std::uint32_t>(half);
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = bits >> 10 & 0x1Fu;
  const std::uint32_t fraction = bits & 0x3FFu;
  if (exponent == 0) {  // fraction units of 2^-24, exact in float
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  if (exponent == 0x1F) {
    const std::uint32_t quiet = fraction == 0 ? 0 : 0x400000u;
    return std::bit_cast<float>(sign | 0x7F800000u | quiet | fraction << 13);
  }
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

}  // namespace flyweight
