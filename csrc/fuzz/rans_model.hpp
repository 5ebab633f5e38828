// A model of several tables with row and column classes, from a few bytes of input.
#pragma once

#include "fuzz/fuzz_input.hpp"
#include "rans/rans.hpp"

namespace flyweight::fuzz {

/// Owns what a rans::Model points to.
struct RansModel {
  rans::Params params{};
  std::size_t alphabet = 0;
  std::vector<std::uint16_t> freqs;
  std::vector<std::uint8_t> row_classes;
  std::vector<std::uint8_t> col_classes;
  std::vector<std::uint16_t> hidden;  ///< a word per way, or none
  std::size_t count = 0;

  rans::Model model() const { return {freqs, alphabet, row_classes, col_classes}; }
};

/// Input: prob_bits - 8 (3 bits) and log2(ways) (3 bits, at most 6), hidden words, classes;
/// alphabet
/// - 1; tables - 1 (4 bits) and how skewed they are (4 bits); rows; columns; seed (u16).
/// With `is_full`, every symbol has a frequency in every table.
inline RansModel take_rans_model(Input& input, bool is_full) {
  RansModel made;
  const unsigned bits = input.u8();
  const unsigned ways = 1u << std::min(bits >> 3 & 7, 6u);
  const unsigned flags = input.u8();
  made.params = {rans::kMinProbBits + (bits & 7), ways};
  made.alphabet = input.u8() + 1;
  const unsigned shape = input.u8();
  const std::size_t rows = input.u8();
  const std::size_t cols = input.u8();
  Noise noise(input.u16());
  if (flags & 1) made.hidden.resize(ways);
  for (auto& word : made.hidden) word = static_cast<std::uint16_t>(noise.next(1 << 16));
  const bool has_classes = (flags & 2) != 0 && rows > 0 && cols > 0;
  // Tables of more than 2^12 slots are slow to make, and no different.
  const std::uint32_t most = made.params.prob_bits > 12 ? 2 : 16;
  const std::uint32_t tables = has_classes ? std::min((shape & 15) + 1, most) : 1;
  made.count = rows * cols;
  if (has_classes) {
    made.row_classes.resize(rows);
    made.col_classes.resize(cols);
    for (auto& row : made.row_classes) row = static_cast<std::uint8_t>(noise.next(tables));
    for (auto& col : made.col_classes) col = static_cast<std::uint8_t>(noise.next(tables));
  }
  made.freqs.resize(tables * made.alphabet);
  std::vector<std::int64_t> counts(made.alphabet);
  for (std::uint32_t t = 0; t < tables; ++t) {
    for (auto& count : counts)
      count = (is_full ? 1 : 0) + noise.next(1u << noise.next((shape >> 4) + 2));
    if (std::ranges::max(counts) == 0)
      counts[noise.next(static_cast<std::uint32_t>(counts.size()))] = 1;
    rans::normalize_counts(counts, made.params.prob_bits,
                           std::span(made.freqs).subspan(t * made.alphabet, made.alphabet));
  }
  return made;
}

}  // namespace flyweight::fuzz
