// The second stream of an ANS stream: the last symbols, and the rare ones that escapes stand for.
//
// It is a scalar rANS stream of one way: the tail by the main table, then the rare symbols by
// theirs. Its first words are hidden in the states of the main stream, where they cost nothing; the
// others follow the words of the main stream. See docs/format.md, "Rare symbols and side words".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rans/weights.hpp"

namespace flyweight::rans {

/// What the main stream codes for each symbol: the escape for a rare one, else the symbol itself.
std::vector<std::uint8_t> stand_ins(const SplitTables& tables);

struct Side {
  std::vector<std::uint16_t> words;  ///< in the order in which a decoder reads them
  std::size_t tail;                  ///< symbols that the main stream need not hold
};

/// Words of the rare symbols, of which there are `rare_count`, and of as long a tail as fits into
/// the `ways` hidden words. Throws InvalidArgument if the symbols are not those that were counted.
Side encode_side(std::span<const std::uint8_t> symbols, const SplitTables& tables,
                 std::size_t rare_count, unsigned prob_bits, unsigned ways);

/// Inverse of encode_side: fills the last `tail` symbols and puts the rare ones in the place of the
/// escapes. The first `hidden` of the words are those of the states. Throws CorruptStream unless
/// the stream ends where it should.
void decode_side(std::span<const std::uint16_t> words, std::size_t hidden,
                 const SplitTables& tables, unsigned prob_bits, std::size_t tail,
                 std::span<std::uint8_t> symbols);

}  // namespace flyweight::rans
