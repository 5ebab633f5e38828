// Counts of symbols and the integer frequencies that encoder and decoder share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace flyweight::rans {

inline constexpr unsigned kMinProbBits = 8;
inline constexpr unsigned kMaxProbBits = 15;
inline constexpr std::size_t kMaxAlphabet = 256;
inline constexpr std::size_t kMaxTables = 256;
/// Counts sum to less than this, so that a count times 1 << kMaxProbBits fits into 63 bits.
inline constexpr std::int64_t kCountLimit = std::int64_t{1} << 48;

inline constexpr bool kScaledCountFits = kCountLimit - 1 <= INT64_MAX >> kMaxProbBits;
static_assert(kScaledCountFits);

void check_prob_bits(unsigned prob_bits);
void check_alphabet(std::size_t alphabet_size);

/// Throws InvalidArgument unless 1 to 256 frequencies sum to 1 << prob_bits.
void check_freqs(std::span<const std::uint16_t> freqs, unsigned prob_bits);

/// Occurrences per symbol; `counts.size()` is the alphabet. Throws InvalidArgument at the first
/// symbol outside it.
void histogram(std::span<const std::uint8_t> symbols, std::span<std::int64_t> counts);

/// Frequencies that sum to 1 << prob_bits and are nonzero exactly where the count is. The rule is
/// part of the format, because decoders run it too (docs/format.md, "Normalization").
void normalize_counts(std::span<const std::int64_t> counts, unsigned prob_bits,
                      std::span<std::uint16_t> freqs);

}  // namespace flyweight::rans
