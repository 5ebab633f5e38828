#include "rans/freq_table.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "common/checked.hpp"

namespace flyweight::rans {
namespace {

struct Share {
  std::int64_t remainder;
  std::size_t symbol;
};

std::int64_t checked_total(std::span<const std::int64_t> counts) {
  std::int64_t total = 0;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    if (counts[s] < 0) {
      fail<InvalidArgument>("normalize_counts: count of symbol ", s, " is negative: ", counts[s]);
    }
    if (counts[s] >= kCountLimit - total) {
      fail<InvalidArgument>("normalize_counts: counts sum to 2**48 or more");
    }
    total += counts[s];
  }
  if (total == 0) fail<InvalidArgument>("normalize_counts: all counts are zero");
  return total;
}

// Rounding down left `missing` slots over: one each to the largest remainders, ties to the lower
// symbol. There are fewer of them than seen symbols, since every remainder is below one slot.
void give_slots(std::span<Share> seen, std::size_t missing, std::span<std::uint16_t> freqs) {
  std::ranges::sort(seen, [](const Share& a, const Share& b) {
    return a.remainder != b.remainder ? a.remainder > b.remainder : a.symbol < b.symbol;
  });
  for (const Share& share : seen.first(missing)) ++freqs[share.symbol];
}

// Raising rare symbols to one slot took `surplus` too many: one at a time from the most frequent.
void take_slots(std::size_t surplus, std::span<std::uint16_t> freqs) {
  for (; surplus > 0; --surplus) --*std::ranges::max_element(freqs);
}

// Small alphabets are counted by pairs of symbols: half of the increments, in tables of 16 kB.
constexpr std::size_t kPairAlphabet = 64;
constexpr std::size_t kPairThreshold = std::size_t{1} << 14;
constexpr std::size_t kPairBlock = std::size_t{1} << 30;  // counts of 32 bits suffice

// Returns false, with counts of no meaning, if a symbol does not fit into six bits.
bool count_pairs(std::span<const std::uint8_t> symbols, std::span<std::int64_t> counts) {
  std::array<std::int64_t, kPairAlphabet> totals{};
  while (!symbols.empty()) {
    const auto block = symbols.first(std::min(symbols.size(), kPairBlock));
    symbols = symbols.subspan(block.size());
    // Two tables, so that equal pairs in a row do not wait for each other's increments.
    std::array<std::array<std::uint32_t, kPairAlphabet * kPairAlphabet>, 2> pairs{};
    std::uint64_t seen = 0;
    std::size_t i = 0;
    for (; i + 16 <= block.size(); i += 16) {
      std::array<std::uint64_t, 2> index;
      std::memcpy(index.data(), &block[i], sizeof index);
      seen |= index[0] | index[1];
      // Bits 0..5 of each 16: the first of two symbols; bits 6..11: the second.
      for (std::uint64_t& eight : index) {
        eight = (eight & 0x003F003F003F003F) | (eight >> 2 & 0x0FC00FC00FC00FC0);
      }
      for (unsigned shift = 0; shift < 64; shift += 16) {
        ++pairs[0][index[0] >> shift & 0xFFFF];
        ++pairs[1][index[1] >> shift & 0xFFFF];
      }
    }
    for (; i < block.size(); ++i) {
      seen |= block[i];
      ++totals[block[i] % kPairAlphabet];
    }
    if ((seen & 0xC0C0C0C0C0C0C0C0) != 0) return false;
    for (std::size_t second = 0; second < kPairAlphabet; ++second) {
      for (std::size_t first = 0; first < kPairAlphabet; ++first) {
        const std::size_t at = second * kPairAlphabet + first;
        const std::int64_t count = std::int64_t{pairs[0][at]} + pairs[1][at];
        totals[first] += count;
        totals[second] += count;
      }
    }
  }
  for (std::size_t s = counts.size(); s < kPairAlphabet; ++s) {
    if (totals[s] != 0) return false;
  }
  std::ranges::copy(std::span(totals).first(counts.size()), counts.begin());
  return true;
}

}  // namespace

void check_prob_bits(unsigned prob_bits) {
  if (prob_bits < kMinProbBits || prob_bits > kMaxProbBits) {
    fail<InvalidArgument>("rans: got prob_bits=", prob_bits, ", expected ", kMinProbBits, " to ",
                          kMaxProbBits);
  }
}

void check_alphabet(std::size_t alphabet_size) {
  if (alphabet_size < 1 || alphabet_size > kMaxAlphabet) {
    fail<InvalidArgument>("rans: got an alphabet of ", alphabet_size, " symbols, expected 1 to ",
                          kMaxAlphabet);
  }
}

void check_freqs(std::span<const std::uint16_t> freqs, unsigned prob_bits) {
  check_prob_bits(prob_bits);
  check_alphabet(freqs.size());
  const auto sum = std::accumulate(freqs.begin(), freqs.end(), std::uint64_t{0});
  if (sum != std::uint64_t{1} << prob_bits) {
    fail<InvalidArgument>("rans: frequencies sum to ", sum, ", expected 2**", prob_bits);
  }
}

void histogram(std::span<const std::uint8_t> symbols, std::span<std::int64_t> counts) {
  check_alphabet(counts.size());
  if (counts.size() <= kPairAlphabet && symbols.size() >= kPairThreshold &&
      count_pairs(symbols, counts)) {
    return;
  }
  // Four tables, so that a run of one symbol does not wait for its own increments.
  std::array<std::array<std::int64_t, kMaxAlphabet>, 4> partial{};
  for (std::size_t i = 0; i < symbols.size(); ++i) ++partial[i % 4][symbols[i]];
  for (std::size_t s = 0; s < kMaxAlphabet; ++s) {
    const std::int64_t count = partial[0][s] + partial[1][s] + partial[2][s] + partial[3][s];
    if (s < counts.size()) {
      counts[s] = count;
    } else if (count != 0) {
      const auto bad = std::ranges::find_if(symbols, [&](auto x) { return x >= counts.size(); });
      if (bad == symbols.end()) fail<InvalidArgument>("histogram: the symbols changed meanwhile");
      fail<InvalidArgument>("histogram: symbol ", unsigned{*bad}, " at position ",
                            bad - symbols.begin(), " is outside the alphabet of ", counts.size());
    }
  }
}

void normalize_counts(std::span<const std::int64_t> counts, unsigned prob_bits,
                      std::span<std::uint16_t> freqs) {
  check_prob_bits(prob_bits);
  check_alphabet(counts.size());
  if (freqs.size() != counts.size()) {
    fail<InvalidArgument>("normalize_counts: ", counts.size(), " counts, but room for ",
                          freqs.size(), " frequencies");
  }
  const std::int64_t total = checked_total(counts);
  const std::int64_t slots = std::int64_t{1} << prob_bits;
  std::array<Share, kMaxAlphabet> shares;
  std::size_t seen = 0;
  std::int64_t missing = slots;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    const std::int64_t scaled = counts[s] * slots;
    const std::int64_t freq = counts[s] == 0 ? 0 : std::max<std::int64_t>(1, scaled / total);
    freqs[s] = static_cast<std::uint16_t>(freq);
    missing -= freq;
    if (counts[s] != 0) shares[seen++] = {scaled % total, s};
  }
  static_assert(kMaxAlphabet <= std::size_t{1} << kMinProbBits, "every seen symbol gets a slot");
  if (missing >= 0) {
    give_slots(std::span(shares).first(seen), static_cast<std::size_t>(missing), freqs);
  } else {
    take_slots(static_cast<std::size_t>(-missing), freqs);
  }
}

}  // namespace flyweight::rans
