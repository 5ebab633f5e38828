// Static range ANS with interleaved 32-bit states that share one sequence of 16-bit words.
//
// Three things to know before reading on:
//  1. ANS is last in, first out. The encoder walks the symbols from last to first and writes its
//     words from the end of the buffer to the front, so that the decoder reads forward.
//  2. Symbol i belongs to way i % ways. The ways are independent states; only the order in which
//     the decoder needs words ties them together.
//  3. A state starts in the encoder, and ends in the decoder, at kStateLower plus any number below
//     it: one word per way rides along for free ("hidden"). Given those words, decoder and encoder
//     steps are exact inverses, so one stream and no other decodes to given symbols.
//
// Stream: `ways` final encoder states (uint32 little-endian, way 0 first), then the words (uint16
// little-endian) in the order in which the decoder reads them. See
// docs/decisions/0001-rans-streams and 0006-ans-streams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "rans/freq_table.hpp"

namespace flyweight::rans {

inline constexpr unsigned kStateBits = 32;
inline constexpr unsigned kWordBits = 16;
inline constexpr std::uint32_t kStateLower = std::uint32_t{1} << 16;
inline constexpr unsigned kMaxWays = 64;
inline constexpr std::size_t kStateBytes = kStateBits / 8;
inline constexpr std::size_t kWordBytes = kWordBits / 8;

// A state lives in [kStateLower, kStateLower << kWordBits), which is all that 32 bits can hold.
inline constexpr bool kStateIsLowerBoundTimesOneWord =
    std::uint64_t{kStateLower} << kWordBits == std::uint64_t{1} << kStateBits;
static_assert(kStateIsLowerBoundTimesOneWord);
// A decoder step leaves at least kStateLower >> prob_bits > 0, so one word always brings the state
// back above the bound; an encoder step never emits more than one word either.
inline constexpr bool kOneWordRenormalizes =
    kStateLower >> kMaxProbBits > 0 && kWordBits >= kMaxProbBits;
static_assert(kOneWordRenormalizes);
// Below one state unit per slot the encoder could not tell neighboring slots apart.
inline constexpr bool kStateResolvesEverySlot = kStateLower >= std::uint32_t{1} << kMaxProbBits;
static_assert(kStateResolvesEverySlot);

struct Params {
  unsigned prob_bits;  ///< log2 of the sum of the frequencies, kMinProbBits to kMaxProbBits
  unsigned ways;       ///< interleaved states, a power of two up to kMaxWays
};

/// One or more frequency tables over one alphabet, and which of them each symbol is coded by.
struct Model {
  std::span<const std::uint16_t> freqs;  ///< (tables, alphabet); each row sums to 1 << prob_bits
  std::size_t alphabet;
  /// Symbol i is in row i / col_classes.size() and column i % col_classes.size(); its table is
  /// row class + column class, or the last table if that is none. Both are empty for one table.
  std::span<const std::uint8_t> row_classes;
  std::span<const std::uint8_t> col_classes;

  std::size_t tables() const { return freqs.size() / alphabet; }
  bool has_classes() const { return !col_classes.empty(); }
};

/// Upper bound in bytes of the stream of `count` symbols: one word each, and the states.
std::size_t encode_bound(std::size_t count, unsigned ways);

/// Encodes into `stream`, whose last bytes are the result; returns their number. `hidden` is a word
/// per way, or empty for zeros. Throws InvalidArgument at the first symbol without a frequency, and
/// BudgetExceeded if the stream does not fit; the bound always does.
std::size_t encode(std::span<const std::uint8_t> symbols, const Model& model, Params params,
                   std::span<const std::uint16_t> hidden, std::span<std::byte> stream);

/// Inverse of encode: fills `symbols` and `hidden` from the front of `stream`, and returns the
/// bytes that it read. An empty `hidden` says that the words must be zeros. Throws CorruptStream if
/// the stream ends early or a state is out of range.
std::size_t decode(std::span<const std::byte> stream, const Model& model, Params params,
                   std::span<std::uint16_t> hidden, std::span<std::uint8_t> symbols);

namespace detail {

/// encode for checked arguments. `stand_ins` says which symbol is coded for each of the alphabet
/// (itself if empty), and that one has a frequency in its table.
std::size_t encode(std::span<const std::uint8_t> symbols, const Model& model, Params params,
                   std::span<const std::uint16_t> hidden, std::span<const std::uint8_t> stand_ins,
                   std::span<std::byte> stream);

}  // namespace detail
}  // namespace flyweight::rans
