// The plain kernels: any precision, any number of ways.
#include <algorithm>

#include "common/bytes.hpp"
#include "rans/rans.hpp"
#include "rans/rans_rows.hpp"

namespace flyweight::rans::detail {
namespace {

std::size_t table_of(const std::uint8_t* contexts, std::size_t i) {
  return contexts == nullptr ? 0 : contexts[i];
}

// By entries of three fields, of which the two lower ones have `kFieldBits` bits.
template <unsigned kFieldBits, class Entry>
std::size_t decode_by(const Entry* slots, DecodeBlock& block) noexcept {
  constexpr auto kField = (std::uint32_t{1} << kFieldBits) - 1;
  const std::uint32_t mask = (std::uint32_t{1} << block.prob_bits) - 1;
  const auto step = [&](std::size_t i) {
    const std::uint32_t state = block.states[i & (block.ways - 1)];
    const std::size_t table = table_of(block.contexts, i) << block.prob_bits;
    const Entry entry = slots[table | (state & mask)];
    block.symbols[i] = static_cast<std::uint8_t>(entry >> (2 * kFieldBits));
    const std::uint32_t freq = static_cast<std::uint32_t>(entry >> kFieldBits) & kField;
    return freq * (state >> block.prob_bits) + (static_cast<std::uint32_t>(entry) & kField);
  };
  std::size_t i = 0;
  while (i < block.count && block.cursor != block.end) {
    // A symbol takes at most one word, so as many symbols as there are words need no check. The
    // word is read in any case; whether it is used is arithmetic, as for the encoder.
    const auto words = static_cast<std::size_t>(block.end - block.cursor) / kWordBytes;
    const std::byte* cursor = block.cursor;
    for (const std::size_t safe = i + std::min(words, block.count - i); i < safe; ++i) {
      const std::uint32_t popped = step(i);
      const std::uint32_t word = load_le<std::uint16_t>(cursor);
      const std::uint32_t takes = popped < kStateLower;
      block.states[i & (block.ways - 1)] = popped << (kWordBits * takes) | (word & (0 - takes));
      cursor += kWordBytes * takes;
    }
    block.cursor = cursor;
  }
  for (; i < block.count; ++i) {  // no words are left, and none may be needed
    const std::uint32_t popped = step(i);
    if (popped < kStateLower) break;
    block.states[i & (block.ways - 1)] = popped;
  }
  return i;
}

}  // namespace

void encode_scalar(EncodeBlock& block) noexcept {
  // The word is stored in any case and kept by moving the cursor: cheaper than a branch that
  // follows the entropy of the data. There is room, as the block has room for a word per symbol.
  std::byte* cursor = block.cursor;
  const unsigned shift = kStateBits + block.prob_bits;
  for (std::size_t i = block.count; i-- > 0;) {
    std::uint32_t& state = block.states[i & (block.ways - 1)];
    const Step& step = block.steps[table_of(block.contexts, i) * kTableSymbols + block.symbols[i]];
    store_le(cursor - kWordBytes, static_cast<std::uint16_t>(state));
    const unsigned emits = state >= step.limit;
    cursor -= kWordBytes * emits;
    state >>= kWordBits * emits;
    const auto quotient = static_cast<std::uint32_t>(state * step.reciprocal >> shift);
    state += step.cum + quotient * step.complement;
  }
  block.cursor = cursor;
}

std::size_t decode_scalar(DecodeBlock& block) noexcept {
  return block.fast != nullptr ? decode_by<12>(block.fast, block)
                               : decode_by<16>(block.slots, block);
}

std::size_t collect_members_scalar(const std::uint8_t* bytes, std::size_t count, const ByteSet& set,
                                   std::uint8_t* members, std::size_t capacity) noexcept {
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t byte = bytes[i];
    if (set.members[byte] == 0) continue;
    if (found == capacity) return capacity + 1;
    members[found++] = byte;
  }
  return found;
}

}  // namespace flyweight::rans::detail
