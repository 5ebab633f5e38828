#include "rans/weights.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "common/checked.hpp"

namespace flyweight::rans {
namespace {

constexpr unsigned kSymbolFieldBits = 8;
constexpr unsigned kMantissaFieldBits = 4;
constexpr unsigned kHeaderBits = 2 * kSymbolFieldBits + kMantissaFieldBits;
/// A class changes by at most 16, and its gamma code is at most 11 bits long.
constexpr unsigned kMaxZeros = 5;
/// Streams of fewer symbols get every table tried; in others the best few are known beforehand.
constexpr std::int64_t kSmallCount = 4096;

// --- bits ---------------------------------------------------------------------------------------

class BitWriter {
 public:
  explicit BitWriter(std::vector<std::byte>& to) : to_(to) {}
  ~BitWriter() {
    if (filled_ > 0) to_.push_back(static_cast<std::byte>(bits_));
  }
  BitWriter(const BitWriter&) = delete;
  BitWriter& operator=(const BitWriter&) = delete;

  void put(std::uint32_t value, unsigned width) {
    bits_ |= std::uint64_t{value} << filled_;
    for (filled_ += width; filled_ >= 8; filled_ -= 8, bits_ >>= 8) {
      to_.push_back(static_cast<std::byte>(bits_));
    }
  }

 private:
  std::vector<std::byte>& to_;
  std::uint64_t bits_ = 0;
  unsigned filled_ = 0;
};

class BitReader {
 public:
  explicit BitReader(std::span<const std::byte> from) : from_(from) {}

  std::uint32_t take(unsigned width) {
    if (width > 8 * from_.size() - at_) {
      fail<CorruptStream>("frequency table ends early, at byte ", from_.size());
    }
    std::uint32_t value = 0;
    for (unsigned k = 0; k < width; ++k, ++at_) {
      value |= (std::to_integer<std::uint32_t>(from_[at_ / 8]) >> at_ % 8 & 1) << k;
    }
    return value;
  }

  std::size_t finish() {
    const std::size_t bytes = (at_ + 7) / 8;
    while (at_ < 8 * bytes) {
      if (take(1) != 0) {
        fail<CorruptStream>("frequency table: padding bits at byte ", bytes - 1, " are not zero");
      }
    }
    return bytes;
  }

 private:
  std::span<const std::byte> from_;
  std::size_t at_ = 0;
};

// --- the code of a weight -----------------------------------------------------------------------
//
// Class: number of bits of the weight, as an Elias gamma code of its difference to the class
// before. Mantissa: the bits below the leading one that are not known to be zero.

unsigned class_of(std::uint32_t weight) { return static_cast<unsigned>(std::bit_width(weight)); }

std::uint32_t gamma_number(unsigned from, unsigned to) {
  return to >= from ? 2 * (to - from) + 1 : 2 * (from - to);
}

unsigned gamma_zeros(std::uint32_t gamma) {
  return static_cast<unsigned>(std::bit_width(gamma)) - 1;
}

unsigned stored_bits(unsigned size_class, unsigned mantissa_bits) {
  return size_class == 0 ? 0 : std::min(size_class - 1, mantissa_bits);
}

struct Range {
  std::size_t first, last;
};

Range seen_range(std::span<const std::uint16_t> weights) {
  const auto is_seen = [](std::uint16_t weight) { return weight != 0; };
  const auto first = std::ranges::find_if(weights, is_seen) - weights.begin();
  const auto last = std::ranges::find_if(weights.rbegin(), weights.rend(), is_seen);
  return {static_cast<std::size_t>(first), static_cast<std::size_t>(weights.rend() - last) - 1};
}

std::uint64_t coded_bits(std::span<const std::uint16_t> weights, unsigned mantissa_bits) {
  const auto [first, last] = seen_range(weights);
  std::uint64_t bits = kHeaderBits;
  for (std::size_t s = first, before = 0; s <= last; ++s) {
    const unsigned size_class = class_of(weights[s]);
    bits += 2 * gamma_zeros(gamma_number(static_cast<unsigned>(before), size_class)) + 1;
    bits += stored_bits(size_class, mantissa_bits);
    before = size_class;
  }
  return bits;
}

// --- choice -------------------------------------------------------------------------------------

// Bits of a symbol, times 2^16, by its frequency. Integers, so that every machine chooses alike: no
// logarithm is near enough to where rounding changes for two math libraries to differ (tested).
constexpr unsigned kCostShift = 16;

std::array<std::uint32_t, (1 << kMaxProbBits) + 1> make_log_table() {
  std::array<std::uint32_t, (1 << kMaxProbBits) + 1> logs{};
  for (std::size_t freq = 1; freq < logs.size(); ++freq) {
    const double bits = std::log2(static_cast<double>(freq));
    logs[freq] = static_cast<std::uint32_t>(std::lround(std::ldexp(bits, kCostShift)));
  }
  return logs;
}

// Counts go up to 2^48, so a sum of costs need not fit into 64 bits.
using Cost = unsigned __int128;

Cost symbol_cost(std::uint16_t freq, unsigned prob_bits) {
  static const auto logs = make_log_table();
  return (prob_bits << kCostShift) - logs[freq];
}

Cost total_cost(std::span<const std::int64_t> counts, const SplitTables& tables,
                unsigned prob_bits) {
  Cost cost = 0;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    if (counts[s] == 0) continue;
    const auto count = static_cast<std::uint64_t>(counts[s]);
    const bool is_rare = tables.has_rare() && tables.rare_freqs[s] != 0;
    cost += count * symbol_cost(tables.freqs[is_rare ? tables.escape : s], prob_bits);
    if (is_rare) cost += count * symbol_cost(tables.rare_freqs[s], prob_bits);
  }
  return cost;
}

// Counts scaled so that the largest has `top_bits` bits, rounded to the mantissa.
void round_counts(std::span<const std::int64_t> counts, unsigned top_bits, unsigned mantissa_bits,
                  std::span<std::uint16_t> weights) {
  const std::int64_t largest = std::ranges::max(counts);
  const unsigned drop_counts =
      largest >> 32 == 0
          ? 0
          : static_cast<unsigned>(std::bit_width(static_cast<std::uint64_t>(largest))) - 32;
  const auto scale_from = static_cast<std::uint64_t>(largest >> drop_counts);
  const std::uint64_t scale_to = (std::uint64_t{1} << top_bits) - 1;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    weights[s] = 0;
    if (counts[s] == 0) continue;
    const auto count = static_cast<std::uint64_t>(counts[s] >> drop_counts);
    const std::uint64_t scaled =
        std::max<std::uint64_t>(1, (2 * count * scale_to + scale_from) / (2 * scale_from));
    const unsigned size_class = class_of(static_cast<std::uint32_t>(scaled));
    const unsigned drop = size_class - 1 - stored_bits(size_class, mantissa_bits);
    const std::uint64_t half = (std::uint64_t{1} << drop) >> 1;
    const std::uint64_t highest = ((std::uint64_t{1} << kMaxWeightBits) - 1) >> drop << drop;
    weights[s] = static_cast<std::uint16_t>(std::min((scaled + half) >> drop << drop, highest));
  }
}

struct Trial {
  unsigned top_bits, mantissa_bits;
};

// A mantissa bit costs a bit a symbol and saves three quarters of about count * 4^-m / 33 bits, so
// the best m is near log4(count / (24 * symbols)).
std::vector<Trial> trials(std::span<const std::int64_t> counts) {
  std::vector<Trial> tried;
  const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  if (total < kSmallCount) {
    for (unsigned top_bits = 4; top_bits <= kMaxWeightBits; top_bits += 2) {
      for (unsigned m = 0; m < std::min(top_bits, 5u); ++m) tried.push_back({top_bits, m});
    }
    return tried;
  }
  const auto seen = static_cast<std::int64_t>(
      counts.size() - static_cast<std::size_t>(std::ranges::count(counts, 0)));
  const auto share = static_cast<std::uint64_t>(total / (24 * seen));
  const unsigned best = std::min(static_cast<unsigned>(std::bit_width(share)) / 2, 8u);
  for (unsigned m = best == 0 ? 0 : best - 1; m <= best + 1; ++m) tried.push_back({16, m});
  return tried;
}

}  // namespace

void encode_weights(std::span<const std::uint16_t> weights, unsigned mantissa_bits,
                    std::vector<std::byte>& to) {
  const auto [first, last] = seen_range(weights);
  BitWriter bits(to);
  bits.put(static_cast<std::uint32_t>(first), kSymbolFieldBits);
  bits.put(static_cast<std::uint32_t>(last), kSymbolFieldBits);
  bits.put(mantissa_bits, kMantissaFieldBits);
  unsigned before = 0;
  for (std::size_t s = first; s <= last; ++s) {
    const unsigned size_class = class_of(weights[s]);
    const std::uint32_t gamma = gamma_number(before, size_class);
    const unsigned zeros = gamma_zeros(gamma);
    bits.put(std::uint32_t{1} << zeros, zeros + 1);
    bits.put(gamma - (std::uint32_t{1} << zeros), zeros);
    const unsigned stored = stored_bits(size_class, mantissa_bits);
    if (stored > 0) {
      bits.put((weights[s] >> (size_class - 1 - stored)) - (std::uint32_t{1} << stored), stored);
    }
    before = size_class;
  }
}

CodedWeights decode_weights(std::span<const std::byte> stream, std::size_t alphabet) {
  check_alphabet(alphabet);
  BitReader bits(stream);
  const std::size_t first = bits.take(kSymbolFieldBits);
  const std::size_t last = bits.take(kSymbolFieldBits);
  if (first > last || last >= alphabet) {
    fail<CorruptStream>("frequency table: symbols ", first, " to ", last, " of an alphabet of ",
                        alphabet);
  }
  const unsigned mantissa_bits = bits.take(kMantissaFieldBits);
  Weights weights(alphabet);
  int size_class = 0;
  for (std::size_t s = first; s <= last; ++s) {
    unsigned zeros = 0;
    while (bits.take(1) == 0) {
      if (++zeros > kMaxZeros) {
        fail<CorruptStream>("frequency table: the class of symbol ", s, " changes by more than ",
                            kMaxWeightBits);
      }
    }
    const auto gamma = static_cast<int>((1u << zeros) + bits.take(zeros));
    size_class += gamma % 2 == 1 ? gamma / 2 : -(gamma / 2);
    if (size_class < 0 || size_class > static_cast<int>(kMaxWeightBits)) {
      fail<CorruptStream>("frequency table: symbol ", s, " has class ", size_class, ", not 0 to ",
                          kMaxWeightBits);
    }
    if (size_class == 0) continue;
    const auto top = static_cast<unsigned>(size_class) - 1;
    const unsigned stored = std::min(top, mantissa_bits);
    weights[s] = static_cast<std::uint16_t>(((1u << stored) + bits.take(stored)) << (top - stored));
  }
  if (weights[first] == 0 || weights[last] == 0) {
    fail<CorruptStream>("frequency table: symbol ", first, " or ", last, " has no weight");
  }
  return {std::move(weights), bits.finish()};
}

SplitTables choose_weights(std::span<const std::int64_t> counts, unsigned prob_bits,
                           std::vector<std::byte>& to, std::size_t& expected_bytes) {
  Weights weights(counts.size());
  Weights best_weights;
  SplitTables best;
  Cost best_cost = ~Cost{0};
  unsigned best_mantissa_bits = 0;
  for (const auto [top_bits, mantissa_bits] : trials(counts)) {
    round_counts(counts, top_bits, mantissa_bits, weights);
    SplitTables tables = split_weights(weights, prob_bits);
    const Cost symbols_cost = total_cost(counts, tables, prob_bits);
    const Cost cost = (Cost{coded_bits(weights, mantissa_bits)} << kCostShift) + symbols_cost;
    if (cost >= best_cost) continue;
    best_cost = cost;
    expected_bytes = static_cast<std::size_t>(symbols_cost >> (kCostShift + 3));
    best_weights = weights;
    best = std::move(tables);
    best_mantissa_bits = mantissa_bits;
  }
  encode_weights(best_weights, best_mantissa_bits, to);
  return best;
}

SplitTables split_weights(std::span<const std::uint16_t> weights, unsigned prob_bits) {
  const std::int64_t total = std::accumulate(weights.begin(), weights.end(), std::int64_t{0});
  std::vector<std::int64_t> main(weights.begin(), weights.end());
  std::vector<std::int64_t> rare(weights.size());
  std::int64_t rare_total = 0;
  std::size_t escape = weights.size();
  for (std::size_t s = 0; s < weights.size(); ++s) {
    if (weights[s] == 0 || main[s] << prob_bits >= total) continue;
    escape = std::min(escape, s);
    rare_total += weights[s];
    std::swap(main[s], rare[s]);
  }
  SplitTables tables;
  tables.freqs.resize(weights.size());
  if (rare_total > 0) {
    main[escape] = rare_total;
    tables.escape = static_cast<std::uint8_t>(escape);
    tables.rare_freqs.resize(weights.size());
    normalize_counts(rare, prob_bits, tables.rare_freqs);
  }
  normalize_counts(main, prob_bits, tables.freqs);
  return tables;
}

}  // namespace flyweight::rans
