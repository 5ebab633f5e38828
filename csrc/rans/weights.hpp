// Frequency tables as they travel: one rough weight per symbol, in a few tens of bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rans/freq_table.hpp"

namespace flyweight::rans {

inline constexpr unsigned kMaxWeightBits = 16;
inline constexpr unsigned kMaxMantissaBits = 15;

/// One weight per symbol of an alphabet, 0 to 65535; not all are zero.
using Weights = std::vector<std::uint16_t>;

/// Coded weights of a stream, and how many bytes they took.
struct CodedWeights {
  Weights weights;
  std::size_t bytes;
};

/// What weights mean to coder and decoder. A symbol whose share is less than one slot is rare: the
/// main table has one entry for all of them, in the place of the lowest, the escape.
struct SplitTables {
  std::vector<std::uint16_t> freqs;       ///< (alphabet,) sums to 1 << prob_bits
  std::vector<std::uint16_t> rare_freqs;  ///< (alphabet,) likewise; empty if no symbol is rare
  std::uint8_t escape = 0;                ///< lowest rare symbol, if any

  bool has_rare() const { return !rare_freqs.empty(); }
};

/// Appends the coded weights, each of which is exact with `mantissa_bits` bits below its leading
/// one. See docs/format.md, "Frequency tables".
void encode_weights(std::span<const std::uint16_t> weights, unsigned mantissa_bits,
                    std::vector<std::byte>& to);

/// Inverse of encode_weights, from the front of `stream`. Throws CorruptStream if the bits end
/// early or break a rule.
CodedWeights decode_weights(std::span<const std::byte> stream, std::size_t alphabet);

/// Appends the coded weights that make table plus symbols smallest, of those that are tried, and
/// returns what they mean. `expected_bytes` become those of the symbols. A count is not zero.
SplitTables choose_weights(std::span<const std::int64_t> counts, unsigned prob_bits,
                           std::vector<std::byte>& to, std::size_t& expected_bytes);

/// See SplitTables.
SplitTables split_weights(std::span<const std::uint16_t> weights, unsigned prob_bits);

}  // namespace flyweight::rans
