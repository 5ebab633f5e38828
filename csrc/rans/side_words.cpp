#include "rans/side_words.hpp"

#include <algorithm>
#include <array>
#include <cstring>

#include "common/checked.hpp"
#include "common/cpu_dispatch.hpp"
#include "rans/rans.hpp"
#include "rans/rans_rows.hpp"

namespace flyweight::rans {
namespace {

using detail::ByteSet;

/// Where a symbol costs next to nothing no tail would fill the hidden words, and slow both coders.
constexpr std::size_t kMaxTail = 4096;

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

// --- encoder ------------------------------------------------------------------------------------

class SideWriter {
 public:
  explicit SideWriter(unsigned prob_bits) : prob_bits_(prob_bits) {}

  void push(const SideTable& table, std::size_t symbol) {
    const std::uint32_t freq = table.freqs[symbol];
    if (emits(freq)) {
      words_.push_back(static_cast<std::uint16_t>(state_));
      state_ >>= kWordBits;
    }
    state_ = ((state_ / freq) << prob_bits_) + state_ % freq + table.cums[symbol];
  }

  bool emits(std::uint32_t freq) const {
    return state_ >= std::uint64_t{freq} << (kStateBits - prob_bits_);
  }

  std::size_t size() const { return words_.size() + kStateBytes / kWordBytes; }

  std::vector<std::uint16_t> finish() {
    words_.push_back(static_cast<std::uint16_t>(state_ >> kWordBits));
    words_.push_back(static_cast<std::uint16_t>(state_));
    std::ranges::reverse(words_);
    return std::move(words_);
  }

 private:
  unsigned prob_bits_;
  std::uint32_t state_ = kStateLower;
  std::vector<std::uint16_t> words_;
};

std::size_t collect_members(std::span<const std::uint8_t> bytes, const ByteSet& set,
                            std::span<std::uint8_t> members) {
#ifdef FLYWEIGHT_X86
  switch (cpu_tier()) {
    case CpuTier::kAvx512:
      return detail::collect_members_avx512(bytes.data(), bytes.size(), set, members.data(),
                                            members.size());
    case CpuTier::kAvx2:
      return detail::collect_members_avx2(bytes.data(), bytes.size(), set, members.data(),
                                          members.size());
    case CpuTier::kScalar:
      break;
  }
#endif
  return detail::collect_members_scalar(bytes.data(), bytes.size(), set, members.data(),
                                        members.size());
}

[[noreturn]] void fail_changed() {
  fail<InvalidArgument>("ans: the symbols changed while they were being encoded");
}

// Rare symbols in the order of their positions.
std::vector<std::uint8_t> collect_rare(std::span<const std::uint8_t> symbols,
                                       const SplitTables& tables, std::size_t rare_count) {
  ByteSet set{};
  for (std::size_t s = 0; s < tables.rare_freqs.size(); ++s) {
    if (tables.rare_freqs[s] == 0) continue;
    set.members[s] = 0xFF;
    set.nibbles[s >> 7][s & 15] |= static_cast<std::uint8_t>(1 << (s >> 4 & 7));
  }
  std::vector<std::uint8_t> rare(rare_count);
  if (collect_members(symbols, set, rare) != rare_count) fail_changed();
  return rare;
}

// --- decoder ------------------------------------------------------------------------------------

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

}  // namespace

std::vector<std::uint8_t> stand_ins(const SplitTables& tables) {
  std::vector<std::uint8_t> coded(tables.freqs.size());
  for (std::size_t s = 0; s < coded.size(); ++s) {
    const bool is_rare = tables.has_rare() && tables.rare_freqs[s] != 0;
    coded[s] = is_rare ? tables.escape : static_cast<std::uint8_t>(s);
  }
  return coded;
}

Side encode_side(std::span<const std::uint8_t> symbols, const SplitTables& tables,
                 std::size_t rare_count, unsigned prob_bits, unsigned ways) {
  SideWriter writer(prob_bits);
  if (tables.has_rare()) {
    const std::vector<std::uint8_t> rare = collect_rare(symbols, tables, rare_count);
    const SideTable rare_table = make_side_table(tables.rare_freqs);
    for (std::size_t i = rare.size(); i-- > 0;) writer.push(rare_table, rare[i]);
  }
  const SideTable main_table = make_side_table(tables.freqs);
  const std::vector<std::uint8_t> coded = stand_ins(tables);
  std::size_t tail = 0;
  for (; tail < std::min(symbols.size(), kMaxTail); ++tail) {  // as many as find room
    const std::uint8_t symbol = symbols[symbols.size() - 1 - tail];
    if (symbol >= coded.size() || tables.freqs[coded[symbol]] == 0) fail_changed();
    if (writer.size() + writer.emits(tables.freqs[coded[symbol]]) > ways) break;
    writer.push(main_table, coded[symbol]);
  }
  return {writer.finish(), tail};
}

void decode_side(std::span<const std::uint16_t> words, std::size_t hidden,
                 const SplitTables& tables, unsigned prob_bits, std::size_t tail,
                 std::span<std::uint8_t> symbols) {
  SideReader reader(words, prob_bits);
  SlotTable table;
  fill_slot_table(tables.freqs, table);
  for (std::uint8_t& symbol : symbols.last(tail)) symbol = reader.pop(table);
  if (tables.has_rare()) {
    fill_slot_table(tables.rare_freqs, table);
    for_each_position(symbols, tables.escape,
                      [&](std::size_t at) { symbols[at] = reader.pop(table); });
  }
  reader.finish(hidden);
}

}  // namespace flyweight::rans
