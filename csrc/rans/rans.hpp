// Static range ANS with interleaved 32-bit states that share one sequence of 16-bit words.
//
// Three things to know before reading on:
//  1. ANS is last in, first out. The encoder walks the symbols from last to first and writes its
//     words from the end of the buffer to the front, so that the decoder reads forward.
//  2. Symbol i belongs to way i % ways. The ways are independent states; only the order in which
//     the decoder needs words ties them together.
//  3. Decoder and encoder steps are exact inverses. A stream that passes every check of the decoder
//     is therefore the one stream that the encoder makes of those symbols.
//
// Stream: `ways` final encoder states (uint32 little-endian, way 0 first), then the words (uint16
// little-endian) in the order in which the decoder reads them. See
// docs/decisions/0001-rans-streams.
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

/// Upper bound in bytes of the stream of `count` symbols: one word each, and the states.
std::size_t encode_bound(std::size_t count, unsigned ways);

/// Encodes to the front of `stream`, which must have room for the bound; returns the bytes used.
/// Throws InvalidArgument at the first symbol without a frequency.
std::size_t encode(std::span<const std::uint8_t> symbols, std::span<const std::uint16_t> freqs,
                   Params params, std::span<std::byte> stream);

/// Inverse of encode: fills `symbols` from exactly `stream`. Throws CorruptStream if the stream
/// ends early, has words left over, or leaves a state other than kStateLower behind.
void decode(std::span<const std::byte> stream, std::span<const std::uint16_t> freqs, Params params,
            std::span<std::uint8_t> symbols);

namespace detail {

/// Why and where decoding stopped.
struct DecodeStatus {
  enum class Kind { kOk, kBadInitialState, kTruncated, kBadFinalState, kSurplus };
  Kind kind = Kind::kOk;
  std::size_t byte = 0;    ///< offset in the stream of the next unread byte
  std::size_t symbol = 0;  ///< index of the symbol being decoded
  unsigned way = 0;        ///< the state concerned
};

/// Both take checked arguments. `freqs` sum to 1 << prob_bits, every symbol has a frequency, and
/// `stream` has room for the bound.
std::size_t encode(std::span<const std::uint8_t> symbols, std::span<const std::uint16_t> freqs,
                   Params params, std::span<std::byte> stream) noexcept;
DecodeStatus decode(std::span<const std::byte> stream, std::span<const std::uint16_t> freqs,
                    Params params, std::span<std::uint8_t> symbols) noexcept;

}  // namespace detail
}  // namespace flyweight::rans
