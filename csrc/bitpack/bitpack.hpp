// Dense packing of symbols of 1 to 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace flyweight::bitpack {

inline constexpr unsigned kMinBits = 1;
inline constexpr unsigned kMaxBits = 8;

/// Bytes that `count` symbols of `bits` bits take.
std::size_t packed_size(std::size_t count, unsigned bits);

/// Writes exactly `packed_size(symbols.size(), bits)` bytes to the front of `packed`.
/// Throws InvalidArgument at the first symbol that needs more than `bits` bits.
void pack_bits(std::span<const std::uint8_t> symbols, unsigned bits, std::span<std::byte> packed);

/// Inverse of pack_bits: `symbols.size()` symbols from a buffer of exactly their packed size.
/// Throws CorruptStream if the size differs or a padding bit is set.
void unpack_bits(std::span<const std::byte> packed, unsigned bits, std::span<std::uint8_t> symbols);

/// Throws CorruptStream unless `packed` can be what pack_bits wrote for `count` symbols: the check
/// to make before memory for the symbols is allocated.
void check_packed(std::span<const std::byte> packed, std::size_t count, unsigned bits);

namespace detail {

/// `packed` has exactly the packed size in both, and every symbol fits.
void pack_bits(std::span<const std::uint8_t> symbols, unsigned bits,
               std::span<std::byte> packed) noexcept;
void unpack_bits(std::span<const std::byte> packed, unsigned bits,
                 std::span<std::uint8_t> symbols) noexcept;

}  // namespace detail
}  // namespace flyweight::bitpack
