#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "common/bytes.hpp"
#include "common/checked.hpp"
#include "rans/rans.hpp"

namespace flyweight::rans {
namespace {

using States = std::array<std::uint32_t, kMaxWays>;

// --- encoder step -------------------------------------------------------------------------------
//
// Plain version: the state is cut into quotient and remainder by the frequency, and the gap between
// them is filled with a number in the slots of the symbol.
constexpr std::uint32_t push_plain(std::uint32_t state, std::uint32_t freq, std::uint32_t cum,
                                   unsigned prob_bits) {
  return ((state / freq) << prob_bits) + state % freq + cum;
}

// Fast version, without division. With N = 1 << prob_bits and q = state / freq,
//   (q << prob_bits) + (state - q * freq) + cum  =  state + cum + q * (N - freq),
// and q = state * m >> F with F = 32 + prob_bits, m = ceil(2^F / freq) = (2^F + e) / freq, e <
// freq. Renormalization has made state < freq * 2^(32 - prob_bits), hence
//   exact:       the error state * e / (freq * 2^F) stays below 1 / freq, as
//                state * e < freq^2 * 2^(32 - prob_bits) <= 2^(32 + prob_bits) = 2^F;
//   no overflow: state * m <= (freq * 2^(32 - prob_bits) - 1) * (2^F + e) / freq
//                           = 2^64 + e * 2^(32 - prob_bits) - (2^F + e) / freq < 2^64,
//                as e * freq * 2^(32 - prob_bits) < 2^F by the line above.
struct Push {
  std::uint64_t limit;       // states from here on emit a word first: freq << (32 - prob_bits)
  std::uint64_t reciprocal;  // m
  std::uint32_t cum;
  std::uint32_t complement;  // N - freq
};

constexpr Push make_push(std::uint32_t freq, std::uint32_t cum, unsigned prob_bits) {
  const std::uint64_t numerator = std::uint64_t{1} << (kStateBits + prob_bits);
  return {.limit = std::uint64_t{freq} << (kStateBits - prob_bits),
          .reciprocal = freq == 0 ? 0 : (numerator + freq - 1) / freq,
          .cum = cum,
          .complement = (std::uint32_t{1} << prob_bits) - freq};
}

constexpr std::uint32_t push(std::uint32_t state, const Push& step, unsigned prob_bits) {
  const auto quotient =
      static_cast<std::uint32_t>(state * step.reciprocal >> (kStateBits + prob_bits));
  return state + step.cum + quotient * step.complement;
}

consteval bool push_equals_plain() {
  for (unsigned prob_bits = kMinProbBits; prob_bits <= kMaxProbBits; ++prob_bits) {
    const std::uint32_t slots = std::uint32_t{1} << prob_bits;
    for (const std::uint32_t freq : {1u, 2u, 3u, 7u, slots / 2 + 1, slots - 1, slots}) {
      const Push step = make_push(freq, slots - freq, prob_bits);
      const auto last = static_cast<std::uint32_t>(step.limit - 1);
      for (const std::uint32_t state : {kStateLower, last / freq * freq - 1, last - freq, last}) {
        if (push(state, step, prob_bits) != push_plain(state, freq, slots - freq, prob_bits)) {
          return false;
        }
      }
    }
  }
  return true;
}
static_assert(push_equals_plain());

// --- decoder table ------------------------------------------------------------------------------
//
// Two levels, 33 kB at 15 bits and 5 kB at 12: slot -> symbol, and symbol -> span. As fast as wider
// entries that hold the span per slot (docs/decisions/0001-rans-streams.md), and smaller.
//
// Span of a symbol:  bits 0..15 frequency (up to 2^15),  bits 16..31 cumulative (below 2^15).
constexpr std::uint32_t pack_span(std::uint32_t freq, std::uint32_t cum) {
  return freq | cum << 16;
}
constexpr std::uint32_t span_freq(std::uint32_t span) { return span & 0xFFFF; }
constexpr std::uint32_t span_cum(std::uint32_t span) { return span >> 16; }

struct DecodeTable {
  std::array<std::uint32_t, kMaxAlphabet> spans;
  std::array<std::uint8_t, std::size_t{1} << kMaxProbBits> symbols;
};

void fill_table(std::span<const std::uint16_t> freqs, DecodeTable& table) noexcept {
  std::uint32_t cum = 0;
  for (std::size_t s = 0; s < freqs.size(); ++s) {
    if (freqs[s] == 0) continue;  // its cumulative may be 2^15 and is never looked up
    table.spans[s] = pack_span(freqs[s], cum);
    std::memset(&table.symbols[cum], static_cast<int>(s), freqs[s]);
    cum += freqs[s];
  }
}

// One decoder step without renormalization.
std::uint32_t pop(std::uint32_t state, const DecodeTable& table, unsigned prob_bits,
                  std::uint8_t& symbol) noexcept {
  const std::uint32_t slot = state & ((std::uint32_t{1} << prob_bits) - 1);
  symbol = table.symbols[slot];
  const std::uint32_t span = table.spans[symbol];
  return span_freq(span) * (state >> prob_bits) + slot - span_cum(span);
}

// --- checks -------------------------------------------------------------------------------------

void check_ways(unsigned ways) {
  if (!std::has_single_bit(ways) || ways > kMaxWays) {
    fail<InvalidArgument>("rans: got ways=", ways, ", expected a power of two up to ", kMaxWays);
  }
}

void check_symbols(std::span<const std::uint8_t> symbols, std::span<const std::uint16_t> freqs) {
  std::array<bool, kMaxAlphabet> is_impossible;
  is_impossible.fill(true);
  for (std::size_t s = 0; s < freqs.size(); ++s) is_impossible[s] = freqs[s] == 0;
  bool any = false;
  for (const std::uint8_t symbol : symbols) any |= is_impossible[symbol];
  if (!any) return;
  const auto bad = std::ranges::find_if(symbols, [&](auto s) { return is_impossible[s]; });
  fail<InvalidArgument>("rans: symbol ", unsigned{*bad}, " at position ", bad - symbols.begin(),
                        " has no frequency in the alphabet of ", freqs.size());
}

void check_stream_size(std::size_t size, unsigned ways) {
  if (size < ways * kStateBytes) {
    fail<CorruptStream>("rans: stream of ", size, " bytes cannot hold the ", ways, " states of ",
                        kStateBytes, " bytes");
  }
  if ((size - ways * kStateBytes) % kWordBytes != 0) {
    fail<CorruptStream>("rans: stream of ", size, " bytes ends within a word of ", kWordBytes,
                        " bytes, at byte ", size - 1);
  }
}

void throw_unless_ok(const detail::DecodeStatus& status, std::size_t size, std::size_t count) {
  using Kind = detail::DecodeStatus::Kind;
  switch (status.kind) {
    case Kind::kOk:
      return;
    case Kind::kBadInitialState:
      fail<CorruptStream>("rans: state of way ", status.way, " at byte ", status.byte,
                          " is below the lower bound ", kStateLower);
    case Kind::kTruncated:
      fail<CorruptStream>("rans: stream ends at byte ", size, " while decoding symbol ",
                          status.symbol, " of ", count, " in way ", status.way);
    case Kind::kBadFinalState:
      fail<CorruptStream>("rans: way ", status.way, " does not end in state ", kStateLower,
                          " at byte ", status.byte, " of ", size);
    case Kind::kSurplus:
      fail<CorruptStream>("rans: all ", count, " symbols were decoded at byte ", status.byte,
                          " of ", size, ", the last in way ", status.way);
  }
}

}  // namespace

// --- kernels ------------------------------------------------------------------------------------

namespace detail {

std::size_t encode(std::span<const std::uint8_t> symbols, std::span<const std::uint16_t> freqs,
                   Params params, std::span<std::byte> stream) noexcept {
  std::array<Push, kMaxAlphabet> steps{};
  for (std::uint32_t s = 0, cum = 0; s < freqs.size(); cum += freqs[s++]) {
    steps[s] = make_push(freqs[s], cum, params.prob_bits);
  }
  States states;
  states.fill(kStateLower);
  // The word is stored in any case and kept by moving the cursor: cheaper than a branch that
  // follows the entropy of the data. There is room, as the bound counts a word per symbol.
  std::byte* const end = stream.data() + stream.size();
  std::byte* cursor = end;
  for (std::size_t i = symbols.size(); i-- > 0;) {
    std::uint32_t& state = states[i & (params.ways - 1)];
    const Push& step = steps[symbols[i]];
    store_le(cursor - kWordBytes, static_cast<std::uint16_t>(state));
    const unsigned emits = state >= step.limit;
    cursor -= kWordBytes * emits;
    state = push(state >> (kWordBits * emits), step, params.prob_bits);
  }
  const auto word_bytes = static_cast<std::size_t>(end - cursor);
  std::memmove(stream.data() + params.ways * kStateBytes, cursor, word_bytes);
  for (unsigned w = 0; w < params.ways; ++w) {
    store_le(stream.data() + w * kStateBytes, states[w]);
  }
  return params.ways * kStateBytes + word_bytes;
}

DecodeStatus decode(std::span<const std::byte> stream, std::span<const std::uint16_t> freqs,
                    Params params, std::span<std::uint8_t> symbols) noexcept {
  using Kind = DecodeStatus::Kind;
  const auto [prob_bits, ways] = params;
  DecodeTable table;
  fill_table(freqs, table);
  States states;
  for (unsigned w = 0; w < ways; ++w) {
    states[w] = load_le<std::uint32_t>(&stream[w * kStateBytes]);
    if (states[w] < kStateLower) return {Kind::kBadInitialState, w * kStateBytes, 0, w};
  }
  const std::byte* cursor = stream.data() + ways * kStateBytes;
  const std::byte* const end = stream.data() + stream.size();
  const auto position = [&] { return static_cast<std::size_t>(cursor - stream.data()); };

  std::size_t i = 0;
  while (i < symbols.size() && cursor != end) {
    // A symbol takes at most one word, so as many symbols as there are words need no check. The
    // word is read in any case; whether it is used is arithmetic, as for the encoder.
    const auto words = static_cast<std::size_t>(end - cursor) / kWordBytes;
    for (const std::size_t safe = i + std::min(words, symbols.size() - i); i < safe; ++i) {
      std::uint32_t& state = states[i & (ways - 1)];
      const std::uint32_t popped = pop(state, table, prob_bits, symbols[i]);
      const std::uint32_t word = load_le<std::uint16_t>(cursor);
      const std::uint32_t takes = popped < kStateLower;
      state = popped << (kWordBits * takes) | (word & (0 - takes));
      cursor += kWordBytes * takes;
    }
  }
  for (; i < symbols.size(); ++i) {  // no words are left, and none may be needed
    std::uint32_t& state = states[i & (ways - 1)];
    state = pop(state, table, prob_bits, symbols[i]);
    if (state < kStateLower) {
      return {Kind::kTruncated, position(), i, static_cast<unsigned>(i & (ways - 1))};
    }
  }
  if (cursor != end) {
    const std::size_t last = symbols.empty() ? 0 : symbols.size() - 1;
    return {Kind::kSurplus, position(), last, static_cast<unsigned>(last & (ways - 1))};
  }
  for (unsigned w = 0; w < ways; ++w) {
    if (states[w] != kStateLower) return {Kind::kBadFinalState, position(), symbols.size(), w};
  }
  return {};
}

}  // namespace detail

// --- public functions
// -----------------------------------------------------------------------------

std::size_t encode_bound(std::size_t count, unsigned ways) {
  check_ways(ways);
  return checked_add(ways * kStateBytes, checked_mul(count, kWordBytes));
}

std::size_t encode(std::span<const std::uint8_t> symbols, std::span<const std::uint16_t> freqs,
                   Params params, std::span<std::byte> stream) {
  check_freqs(freqs, params.prob_bits);
  require_room(encode_bound(symbols.size(), params.ways), stream.size(), "rans");
  check_symbols(symbols, freqs);
  return detail::encode(symbols, freqs, params, stream);
}

void decode(std::span<const std::byte> stream, std::span<const std::uint16_t> freqs, Params params,
            std::span<std::uint8_t> symbols) {
  check_freqs(freqs, params.prob_bits);
  check_ways(params.ways);
  check_stream_size(stream.size(), params.ways);
  throw_unless_ok(detail::decode(stream, freqs, params, symbols), stream.size(), symbols.size());
}

}  // namespace flyweight::rans
