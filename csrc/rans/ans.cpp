#include "rans/ans.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "common/bytes.hpp"
#include "common/checked.hpp"
#include "common/cpu_dispatch.hpp"
#include "rans/rans.hpp"
#include "rans/rans_rows.hpp"
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
/// Of one symbol, more than this are not credible in two bytes (docs/format.md, "Parts").
constexpr std::size_t kMaxSingle = (std::size_t{1} << 16) + 2 * (std::size_t{1} << 14);

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

// --- rare symbols -------------------------------------------------------------------------------

// Positions of a byte; memchr is the fastest loop over bytes that there is.
template <class Visit>
void for_each_position(std::span<const std::uint8_t> symbols, std::uint8_t symbol, Visit visit) {
  const std::uint8_t* at = symbols.data();
  const std::uint8_t* const end = at + symbols.size();
  while (at != end) {
    at = static_cast<const std::uint8_t*>(
        std::memchr(at, symbol, static_cast<std::size_t>(end - at)));
    if (at == nullptr) return;
    visit(static_cast<std::size_t>(at - symbols.data()));
    ++at;
  }
}

using detail::ByteSet;
using detail::kGroup;

std::size_t skip_groups(const std::uint8_t* bytes, std::size_t count, const ByteSet& set) {
#ifdef FLYWEIGHT_X86
  if (cpu_tier() >= CpuTier::kAvx2) return detail::skip_groups_avx2(bytes, count, set);
#endif
  (void)bytes, (void)count, (void)set;
  return 0;
}

// Rare symbols in the order of their positions; most groups have none.
std::vector<std::uint8_t> collect_rare(std::span<const std::uint8_t> symbols,
                                       const SplitTables& tables) {
  std::array<std::uint8_t, kMaxAlphabet> is_rare{};
  ByteSet set{};
  for (std::size_t s = 0; s < tables.rare_freqs.size(); ++s) {
    if (tables.rare_freqs[s] == 0) continue;
    is_rare[s] = 1;
    set.nibbles[s >> 7][s & 15] |= static_cast<std::uint8_t>(1 << (s >> 4 & 7));
  }
  std::vector<std::uint8_t> rare;
  std::size_t i = 0;
  while (i < symbols.size()) {
    i += skip_groups(&symbols[i], symbols.size() - i, set);
    for (const std::size_t end = std::min(i + kGroup, symbols.size()); i < end; ++i) {
      if (is_rare[symbols[i]] != 0) rare.push_back(symbols[i]);
    }
  }
  return rare;
}

// --- side words ---------------------------------------------------------------------------------
//
// A second, scalar rANS stream of one way: the tail (the last symbols, by the main table) and then
// the rare symbols that the escapes stand for. Its first words are hidden in the states of the main
// stream, where they cost nothing; the others follow the words of the main stream.

// Frequencies, and where they begin.
struct SideTable {
  std::span<const std::uint16_t> freqs;
  std::array<std::uint32_t, kMaxAlphabet> cums;
};

SideTable make_side_table(std::span<const std::uint16_t> freqs) {
  SideTable table{freqs, {}};
  for (std::size_t s = 1; s < freqs.size(); ++s) table.cums[s] = table.cums[s - 1] + freqs[s - 1];
  return table;
}

class SideWriter {
 public:
  void push(const SideTable& table, std::size_t symbol) {
    const std::uint32_t freq = table.freqs[symbol];
    if (emits(freq)) {
      words_.push_back(static_cast<std::uint16_t>(state_));
      state_ >>= kWordBits;
    }
    state_ = ((state_ / freq) << kProbBits) + state_ % freq + table.cums[symbol];
  }

  bool emits(std::uint32_t freq) const {
    return state_ >= std::uint64_t{freq} << (kStateBits - kProbBits);
  }

  std::size_t size() const { return words_.size() + kStateBytes / kWordBytes; }

  /// The words in the order in which a decoder reads them.
  std::vector<std::uint16_t> finish() {
    words_.push_back(static_cast<std::uint16_t>(state_ >> kWordBits));
    words_.push_back(static_cast<std::uint16_t>(state_));
    std::ranges::reverse(words_);
    return std::move(words_);
  }

 private:
  std::uint32_t state_ = kStateLower;
  std::vector<std::uint16_t> words_;
};

// What the main stream codes for each symbol: the escape for a rare one, else the symbol itself.
std::vector<std::uint8_t> stand_ins(const SplitTables& tables) {
  std::vector<std::uint8_t> coded(tables.freqs.size());
  for (std::size_t s = 0; s < coded.size(); ++s) {
    const bool is_rare = tables.has_rare() && tables.rare_freqs[s] != 0;
    coded[s] = is_rare ? tables.escape : static_cast<std::uint8_t>(s);
  }
  return coded;
}

struct Side {
  std::vector<std::uint16_t> words;
  std::size_t tail;
};

Side encode_side(std::span<const std::uint8_t> symbols, const SplitTables& tables, unsigned ways) {
  SideWriter writer;
  if (tables.has_rare()) {
    const std::vector<std::uint8_t> rare = collect_rare(symbols, tables);
    const SideTable rare_table = make_side_table(tables.rare_freqs);
    for (std::size_t i = rare.size(); i-- > 0;) writer.push(rare_table, rare[i]);
  }
  const SideTable main_table = make_side_table(tables.freqs);
  std::size_t tail = 0;
  while (tail < symbols.size()) {  // as many as find room in the states
    std::size_t symbol = symbols[symbols.size() - 1 - tail];
    if (tables.has_rare() && tables.rare_freqs[symbol] != 0) symbol = tables.escape;
    if (writer.size() + writer.emits(tables.freqs[symbol]) > ways) break;
    writer.push(main_table, symbol);
    ++tail;
  }
  return {writer.finish(), tail};
}

// And which symbol has each slot.
struct SlotTable {
  SideTable side;
  std::array<std::uint8_t, std::size_t{1} << kMaxProbBits> symbols;
};

void fill_slot_table(std::span<const std::uint16_t> freqs, SlotTable& table) {
  table.side = make_side_table(freqs);
  for (std::size_t s = 0; s < freqs.size(); ++s) {
    std::memset(table.symbols.data() + table.side.cums[s], static_cast<int>(s), freqs[s]);
  }
}

class SideReader {
 public:
  SideReader(std::span<const std::uint16_t> words, unsigned prob_bits)
      : words_(words), prob_bits_(prob_bits) {
    const std::uint32_t low = take();
    state_ = low | std::uint32_t{take()} << kWordBits;
    if (state_ < kStateLower) {
      fail<CorruptStream>("ans: the state of the side words is below the lower bound ",
                          kStateLower);
    }
  }

  std::uint8_t pop(const SlotTable& table) {
    const std::uint32_t slot = state_ & ((std::uint32_t{1} << prob_bits_) - 1);
    const std::uint8_t symbol = table.symbols[slot];
    const SideTable& side = table.side;
    state_ = side.freqs[symbol] * (state_ >> prob_bits_) + slot - side.cums[symbol];
    if (state_ < kStateLower) state_ = state_ << kWordBits | take();
    return symbol;
  }

  /// Throws unless everything was read, but for zeros in the room that the states have.
  void finish(std::size_t hidden) const {
    const auto rest = words_.subspan(read_);
    const bool is_padding =
        words_.size() == hidden && std::ranges::count(rest, 0) == std::ssize(rest);
    if (state_ != kStateLower || !(rest.empty() || is_padding)) {
      fail<CorruptStream>("ans: the side words do not end where they should, ", rest.size(),
                          " words before the end");
    }
  }

 private:
  std::uint16_t take() {
    if (read_ == words_.size()) fail<CorruptStream>("ans: stream ends within the side words");
    return words_[read_++];
  }

  std::span<const std::uint16_t> words_;
  unsigned prob_bits_;
  std::size_t read_ = 0;
  std::uint32_t state_ = 0;
};

// Fills the tail, and puts the rare symbols in the place of the escapes.
void decode_side(SideReader& reader, const SplitTables& tables, std::size_t tail,
                 std::span<std::uint8_t> symbols) {
  SlotTable table;
  fill_slot_table(tables.freqs, table);
  for (std::uint8_t& symbol : symbols.last(tail)) symbol = reader.pop(table);
  if (!tables.has_rare()) return;
  fill_slot_table(tables.rare_freqs, table);
  for_each_position(symbols, tables.escape,
                    [&](std::size_t at) { symbols[at] = reader.pop(table); });
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
  if (seen <= 1 && plan.count <= kMaxSingle) {
    const auto symbol = std::ranges::max_element(counts) - counts.begin();
    plan.head = {pack_header({kModeSingle, {kMinProbBits, 1}}), static_cast<std::byte>(symbol)};
    return plan;
  }
  plan.head.resize(1);
  plan.tables = choose_weights(counts, kProbBits, plan.head, plan.expected_bytes);
  // One symbol alone needs no bytes; its states make the count credible.
  plan.ways = seen <= 1 ? kMaxWays : choose_ways(plan.expected_bytes);
  plan.has_side = plan.tables.has_rare() || (seen > 1 && plan.ways >= kWaysForTail);
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
    std::ranges::copy(head, stream.begin());
    return head.size();
  }
  Side side{{}, 0};
  std::vector<std::uint16_t> hidden;
  if (plan.has_side) {
    side = encode_side(symbols, plan.tables, plan.ways);
    put_varint(side.tail, head);
    hidden.resize(plan.ways);
  }
  const std::size_t fitting = std::min(hidden.size(), side.words.size());
  std::copy_n(side.words.begin(), fitting, hidden.begin());
  const auto behind = std::span<const std::uint16_t>(side.words).subspan(fitting);
  require_room(head.size() + behind.size_bytes(), stream.size(), "ans");
  const auto body = stream.subspan(head.size(), stream.size() - head.size() - behind.size_bytes());
  const Model model{plan.tables.freqs, plan.tables.freqs.size(), {}, {}};
  const std::size_t size =
      detail::encode(symbols.first(symbols.size() - side.tail), model, {kProbBits, plan.ways},
                     hidden, stand_ins(plan.tables), body);
  std::ranges::copy(head, stream.begin());
  std::byte* const to = stream.data() + head.size();
  std::memmove(to, body.data() + body.size() - size, size);
  if (!behind.empty()) std::memcpy(to + size, behind.data(), behind.size_bytes());
  return head.size() + size + behind.size_bytes();
}

void ans_decode(std::span<const std::byte> stream, std::size_t alphabet,
                std::span<std::uint8_t> symbols) {
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
  SideReader reader(words, prob_bits);
  decode_side(reader, tables, tail, symbols);
  reader.finish(ways);
}

}  // namespace flyweight::rans
