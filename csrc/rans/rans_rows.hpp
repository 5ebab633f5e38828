// What rans.cpp asks of an instruction set: to encode or decode a block of symbols.
//
// Included by files that are compiled for one instruction set each, hence declarations and plain
// data only: code in here could end up compiled for AVX-512 and linked into every caller.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flyweight::rans::detail {

inline constexpr unsigned kTableSymbols = 256;  ///< entries of a table of encoder steps
inline constexpr unsigned kFastProbBits = 12;   ///< what the vector kernels are made for

/// Encoder step of one symbol by one table; rans.cpp derives it.
struct Step {
  std::uint64_t limit;       ///< states from here on emit a word first: freq << (32 - prob_bits)
  std::uint64_t reciprocal;  ///< ceil(2^(32 + prob_bits) / freq)
  std::uint32_t cum;
  std::uint32_t complement;  ///< (1 << prob_bits) - freq
};

/// The same at 12 bits for vectors: 32-bit fields that are loaded side by side.
struct FastStep {
  std::uint32_t reciprocal;
  std::uint32_t limit;   ///< freq << 20
  std::uint32_t bias;    ///< cum, or cum + 4095 where freq is 1
  std::uint32_t factor;  ///< bits 0..12: 4096 - freq; bits 16..19: shift of the quotient
};

struct EncodeBlock {
  const std::uint8_t* symbols;
  const std::uint8_t* contexts;  ///< table of each symbol; null for table 0
  std::size_t count;             ///< the first symbol of a block belongs to way 0
  std::uint32_t* states;
  unsigned ways;
  unsigned prob_bits;
  std::byte* cursor;     ///< words go in front of it; there is room for `count` of them
  const Step* steps;     ///< (tables, kTableSymbols)
  const FastStep* fast;  ///< (tables, kTableSymbols); null where vectors cannot be used
  std::size_t alphabet;
};

struct DecodeBlock {
  std::uint8_t* symbols;
  const std::uint8_t* contexts;
  std::size_t count;
  std::uint32_t* states;
  unsigned ways;
  unsigned prob_bits;
  const std::byte* cursor;  ///< next word
  const std::byte* end;     ///< behind the last word
  /// (tables, 4096); bits 0..11 slot - cumulative, 12..23 frequency, 24..31 symbol; null for other
  /// precisions and for a symbol with all slots
  const std::uint32_t* fast;
  /// (tables, 1 << prob_bits); bits 0..15 slot - cumulative, 16..31 frequency, 32..39 symbol; only
  /// where `fast` is null
  const std::uint64_t* slots;
};

/// Encodes the whole block, last symbol first; moves cursor and states.
void encode_scalar(EncodeBlock& block) noexcept;
/// Decodes symbols until the block or the words end; returns their number.
std::size_t decode_scalar(DecodeBlock& block) noexcept;

/// Encode whole rows of `ways` symbols, 8 (AVX2) or 16 (AVX-512) ways or more. `count` is a
/// multiple of `ways`, and `fast` is not null.
void encode_avx2(EncodeBlock& block) noexcept;
void encode_avx512(EncodeBlock& block) noexcept;
/// Decode whole rows while there is a word for each way; return the symbols decoded.
std::size_t decode_avx2(DecodeBlock& block) noexcept;
std::size_t decode_avx512(DecodeBlock& block) noexcept;

/// A set of bytes, in the two forms that the kernels look it up in.
struct ByteSet {
  std::uint8_t members[256];    ///< 0xFF for a member, else 0
  std::uint8_t nibbles[2][16];  ///< bit h % 8 of [h / 8][l] for byte 16 * h + l
};

/// Copies the bytes that are in the set, in order, to `members`, at most `capacity` of them;
/// returns how many there are, or capacity + 1 if they are more.
std::size_t collect_members_scalar(const std::uint8_t* bytes, std::size_t count, const ByteSet& set,
                                   std::uint8_t* members, std::size_t capacity) noexcept;
std::size_t collect_members_avx2(const std::uint8_t* bytes, std::size_t count, const ByteSet& set,
                                 std::uint8_t* members, std::size_t capacity) noexcept;
std::size_t collect_members_avx512(const std::uint8_t* bytes, std::size_t count, const ByteSet& set,
                                   std::uint8_t* members, std::size_t capacity) noexcept;

}  // namespace flyweight::rans::detail
