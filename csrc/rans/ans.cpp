#include "rans/ans.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "common/bytes.hpp"
#include "common/checked.hpp"
#include "rans/rans.hpp"
#include "rans/side_words.hpp"
#include "rans/weights.hpp"

namespace flyweight::rans {
namespace {

constexpr unsigned kModeSingle = 0;
constexpr unsigned kModeTable = 1;
constexpr unsigned kModeSide = 2;
constexpr unsigned kProbBits = 12;
constexpr std::size_t kBytesPerWay = 768;
constexpr std::size_t kBlockRoom = std::size_t{1} << 15;
/// Fewer ways have no room for a tail that is worth its count.
constexpr unsigned kWaysForTail = 4;
constexpr std::size_t kMaxVarintBytes = 9;
constexpr std::size_t kSingleBytes = 2;

// Header byte: bits 0..2 prob_bits - 8, bits 3..5 log2(ways), bits 6..7 mode.
struct Header {
  unsigned mode;
  Params params;
};

std::byte pack_header(const Header& header) {
  return static_cast<std::byte>((header.params.prob_bits - kMinProbBits) |
                                static_cast<unsigned>(std::countr_zero(header.params.ways)) << 3 |
                                header.mode << 6);
}

Header read_header(std::span<const std::byte> stream) {
  if (stream.size() < 2) {
    fail<CorruptStream>("ans: stream has ", stream.size(), " bytes, expected at least 2");
  }
  const auto byte = std::to_integer<unsigned>(stream[0]);
  const Header header{byte >> 6, {kMinProbBits + (byte & 7), 1u << (byte >> 3 & 7)}};
  if (header.mode > kModeSide) {
    fail<CorruptStream>("ans: table mode ", header.mode, " is not defined");
  }
  if (header.params.ways > kMaxWays) {
    fail<CorruptStream>("ans: ", header.params.ways, " ways, expected at most ", kMaxWays);
  }
  return header;
}

// More ways where decoding speed pays for what they cost, a byte or two each.
unsigned choose_ways(std::size_t expected_bytes) {
  const std::size_t ways = std::bit_floor(std::max<std::size_t>(expected_bytes / kBytesPerWay, 1));
  return static_cast<unsigned>(std::min<std::size_t>(ways, kMaxWays));
}

// Whether readers accept so many symbols in so many bytes (docs/format.md, "Parts").
bool is_credible(std::size_t count, std::size_t bytes) {
  return count <= (std::size_t{1} << 16) + (bytes << 14);
}

// Counts in which the second symbol has two slots, so that the first has 4094 at most and a byte
// holds 11,354 symbols at most: of almost one symbol alone, streams would be too short to be
// credible.
std::vector<std::int64_t> less_certain(std::span<const std::int64_t> counts) {
  std::vector<std::int64_t> changed(counts.begin(), counts.end());
  const auto first = std::ranges::max_element(changed) - changed.begin();
  std::int64_t total = 0;
  for (const std::int64_t count : counts) total += count;
  std::ptrdiff_t second = first == 0 ? 1 : 0;
  for (std::ptrdiff_t s = 0; s < std::ssize(counts); ++s) {
    const auto at = static_cast<std::size_t>(s);
    if (s != first && counts[at] > counts[static_cast<std::size_t>(second)]) second = s;
  }
  std::int64_t& count = changed[static_cast<std::size_t>(second)];
  count = std::max(count, total / 2000 + 1);
  return changed;
}

// --- varint -------------------------------------------------------------------------------------

void put_varint(std::size_t value, std::vector<std::byte>& to) {
  for (; value > 127; value >>= 7) to.push_back(static_cast<std::byte>(value | 128));
  to.push_back(static_cast<std::byte>(value));
}

// Returns the bytes read.
std::size_t take_varint(std::span<const std::byte> from, std::size_t& value) {
  value = 0;
  for (std::size_t at = 0; at < std::min(from.size(), kMaxVarintBytes); ++at) {
    const auto byte = std::to_integer<std::size_t>(from[at]);
    value |= (byte & 127) << (7 * at);
    if (byte < 128) {
      if (byte == 0 && at > 0) break;
      return at + 1;
    }
  }
  fail<CorruptStream>("ans: the number of tail symbols is no varint");
}

std::vector<std::uint16_t> words_behind(std::span<const std::byte> rest) {
  if (rest.size() % kWordBytes != 0) {
    fail<CorruptStream>("ans: stream ends within a word of ", kWordBytes, " bytes");
  }
  std::vector<std::uint16_t> words(rest.size() / kWordBytes);
  if (!words.empty()) std::memcpy(words.data(), rest.data(), rest.size());
  return words;
}

}  // namespace

// --- whole streams ------------------------------------------------------------------------------

AnsPlan plan_ans(std::span<const std::int64_t> counts) {
  AnsPlan plan;
  for (const std::int64_t count : counts) plan.count += static_cast<std::size_t>(count);
  const auto seen = counts.size() - static_cast<std::size_t>(std::ranges::count(counts, 0));
  if (seen <= 1 && is_credible(plan.count, kSingleBytes)) {
    const auto symbol = std::ranges::max_element(counts) - counts.begin();
    plan.head = {pack_header({kModeSingle, {kMinProbBits, 1}}), static_cast<std::byte>(symbol)};
    return plan;
  }
  plan.head.resize(1);
  plan.tables = choose_weights(counts, kProbBits, plan.head, plan.expected_bytes);
  if (!is_credible(plan.count, plan.expected_bytes) && counts.size() > 1) {
    plan.head.resize(1);
    plan.tables = choose_weights(less_certain(counts), kProbBits, plan.head, plan.expected_bytes);
  }
  for (std::size_t s = 0; s < plan.tables.rare_freqs.size(); ++s) {
    if (plan.tables.rare_freqs[s] != 0) plan.rare_count += static_cast<std::size_t>(counts[s]);
  }
  plan.ways = choose_ways(plan.expected_bytes);
  plan.has_side = plan.tables.has_rare() || plan.ways >= kWaysForTail;
  const unsigned mode = plan.has_side ? kModeSide : kModeTable;
  plan.head[0] = pack_header({mode, {kProbBits, plan.ways}});
  return plan;
}

std::size_t AnsPlan::bound() const {
  if (ways == 0) return head.size();
  // Each symbol is at most one word in the main stream and, where rare, one more in the side words.
  const std::size_t words = checked_mul(count, tables.has_rare() ? 2 : 1);
  return checked_add(head.size() + kMaxVarintBytes + 2 * kStateBytes, encode_bound(words, ways));
}

std::size_t AnsPlan::likely_bound() const {
  // The kernels ask for room for a whole block of words ahead.
  return std::min(bound(), head.size() + expected_bytes + expected_bytes / 32 + kBlockRoom);
}

std::size_t ans_encode(std::span<const std::uint8_t> symbols, const AnsPlan& plan,
                       std::span<std::byte> stream) {
  std::vector<std::byte> head = plan.head;
  if (plan.ways == 0) {
    require_room(head.size(), stream.size(), "ans");
    std::ranges::copy(head, stream.end() - std::ssize(head));
    return head.size();
  }
  Side side{{}, 0};
  std::vector<std::uint16_t> hidden;
  if (plan.has_side) {
    side = encode_side(symbols, plan.tables, plan.rare_count, kProbBits, plan.ways);
    put_varint(side.tail, head);
    hidden.resize(plan.ways);
  }
  const std::size_t fitting = std::min(hidden.size(), side.words.size());
  std::copy_n(side.words.begin(), fitting, hidden.begin());
  const auto behind = std::as_bytes(std::span(side.words).subspan(fitting));
  require_room(behind.size(), stream.size(), "ans");
  const auto body = stream.first(stream.size() - behind.size());
  const Model model{plan.tables.freqs, plan.tables.freqs.size(), {}, {}};
  const std::size_t size =
      detail::encode(symbols.first(symbols.size() - side.tail), model, {kProbBits, plan.ways},
                     hidden, stand_ins(plan.tables), body);
  require_room(head.size() + size, body.size(), "ans");
  std::ranges::copy(behind, body.end());
  std::ranges::copy(head, body.end() - static_cast<std::ptrdiff_t>(head.size() + size));
  return head.size() + size + behind.size();
}

void ans_decode(std::span<const std::byte> stream, std::size_t alphabet,
                std::span<std::uint8_t> symbols) {
  check_alphabet(alphabet);
  const Header header = read_header(stream);
  if (header.mode == kModeSingle) {
    const auto symbol = std::to_integer<std::uint8_t>(stream[1]);
    if (stream.size() != 2 || stream[0] != std::byte{0} || symbol >= alphabet) {
      fail<CorruptStream>("ans: a one-symbol stream is a zero byte and a symbol below ", alphabet,
                          ", got ", stream.size(), " bytes");
    }
    std::ranges::fill(symbols, symbol);
    return;
  }
  const auto [weights, table_bytes] = decode_weights(stream.subspan(1), alphabet);
  std::size_t at = 1 + table_bytes;
  const auto [prob_bits, ways] = header.params;
  if (header.mode == kModeTable) {
    const std::vector<std::int64_t> counts(weights.begin(), weights.end());
    std::vector<std::uint16_t> freqs(alphabet);
    normalize_counts(counts, prob_bits, freqs);
    const Model model{freqs, alphabet, {}, {}};
    at += decode(stream.subspan(at), model, header.params, {}, symbols);
    if (at != stream.size()) {
      fail<CorruptStream>("ans: all ", symbols.size(), " symbols were decoded at byte ", at, " of ",
                          stream.size());
    }
    return;
  }
  std::size_t tail = 0;
  at += take_varint(stream.subspan(at), tail);
  if (tail > symbols.size()) {
    fail<CorruptStream>("ans: a tail of ", tail, " symbols, but there are ", symbols.size());
  }
  const SplitTables tables = split_weights(weights, prob_bits);
  const Model model{tables.freqs, alphabet, {}, {}};
  std::vector<std::uint16_t> words(ways);
  at +=
      decode(stream.subspan(at), model, header.params, words, symbols.first(symbols.size() - tail));
  const std::vector<std::uint16_t> behind = words_behind(stream.subspan(at));
  words.insert(words.end(), behind.begin(), behind.end());
  decode_side(words, ways, tables, prob_bits, tail, symbols);
}

}  // namespace flyweight::rans
