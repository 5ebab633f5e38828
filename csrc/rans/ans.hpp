// The ANS codec: a whole stream of symbols with its table. See docs/format.md, "ANS".
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "rans/weights.hpp"

namespace flyweight::rans {

/// Everything about a stream that its histogram decides.
struct AnsPlan {
  std::vector<std::byte> head;  ///< header byte and coded weights; the whole stream of one symbol
  SplitTables tables;
  unsigned ways = 0;  ///< 0 for a stream of one symbol
  bool has_side = false;
  std::size_t count = 0;
  std::size_t rare_count = 0;      ///< rare symbols among them
  std::size_t expected_bytes = 0;  ///< of all the rest, by the frequencies

  /// Bytes of the buffer that ans_encode needs at most.
  std::size_t bound() const;
  /// Bytes that do for all but streams made to need more.
  std::size_t likely_bound() const;
};

/// `counts` is the histogram of the symbols to encode, and its size their alphabet.
AnsPlan plan_ans(std::span<const std::int64_t> counts);

/// Encodes into `stream`, whose last bytes are the result; returns their number. Throws
/// BudgetExceeded if they do not fit; they always fit into the plan's bound.
std::size_t ans_encode(std::span<const std::uint8_t> symbols, const AnsPlan& plan,
                       std::span<std::byte> stream);

/// Inverse of ans_encode: fills `symbols` from exactly `stream`. Throws CorruptStream if the stream
/// breaks a rule.
void ans_decode(std::span<const std::byte> stream, std::size_t alphabet,
                std::span<std::uint8_t> symbols);

}  // namespace flyweight::rans
