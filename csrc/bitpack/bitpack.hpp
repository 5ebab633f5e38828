// Dense packing of symbols of 1 to 8 bits, and of codes: int8 = symbol + lo.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace flyweight::bitpack {

inline constexpr unsigned kMinBits = 1;
inline constexpr unsigned kMaxBits = 8;

/// Signed codes lo .. lo + 2^bits - 1, all of which int8 must hold; symbol = code - lo.
struct CodeRange {
  unsigned bits;
  int lo;
};

/// A matrix of codes that are packed row after row, with no padding between rows.
struct MatrixShape {
  std::size_t rows;
  std::size_t cols;
  std::size_t group_size;  ///< columns that share a scale; 0 means the whole row
};

/// Bytes that `count` symbols of `bits` bits take.
std::size_t packed_size(std::size_t count, unsigned bits);

/// Throws InvalidArgument unless the width is one of ours and int8 holds the whole range.
void check_range(CodeRange range);

/// Writes exactly `packed_size(symbols.size(), bits)` bytes to the front of `packed`.
/// Throws InvalidArgument at the first symbol that needs more than `bits` bits; `packed` has then
/// been written to.
void pack_bits(std::span<const std::uint8_t> symbols, unsigned bits, std::span<std::byte> packed);

/// Inverse of pack_bits: `symbols.size()` symbols from a buffer of exactly their packed size.
/// Throws CorruptStream if the size differs or a padding bit is set.
void unpack_bits(std::span<const std::byte> packed, unsigned bits, std::span<std::uint8_t> symbols);

/// The same with codes. Throws InvalidArgument if the range leaves int8, and when packing at the
/// first code outside the range.
void pack_codes(std::span<const std::int8_t> codes, CodeRange range, std::span<std::byte> packed);
void unpack_codes(std::span<const std::byte> packed, CodeRange range, std::span<std::int8_t> codes);

/// Scales of a row.
std::size_t scale_groups(MatrixShape shape);

/// Unpacks codes and multiplies: value = float32(code) * scale, rounded once. `scales` are
/// (rows, scale_groups), `values` (rows, cols). The overload for bfloat16, as bit patterns, rounds
/// that value to nearest even, and every NaN to the quiet one of its sign.
/// Throws as unpack_codes does, and InvalidArgument if a size differs.
void unpack_dequantize(std::span<const std::byte> packed, std::span<const float> scales,
                       CodeRange range, MatrixShape shape, std::span<float> values);
void unpack_dequantize(std::span<const std::byte> packed, std::span<const float> scales,
                       CodeRange range, MatrixShape shape, std::span<std::uint16_t> values);

/// Throws CorruptStream unless `packed` can be what pack_bits wrote for `count` symbols: the check
/// to make before memory for the symbols is allocated.
void check_packed(std::span<const std::byte> packed, std::size_t count, unsigned bits);

}  // namespace flyweight::bitpack
