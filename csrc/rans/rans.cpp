// Checks, tables and the walk over blocks; the steps themselves are in rans_scalar.cpp and in the
// file of each instruction set.
#include "rans/rans.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "common/bytes.hpp"
#include "common/checked.hpp"
#include "common/cpu_dispatch.hpp"
#include "rans/rans_rows.hpp"

namespace flyweight::rans {
namespace {

using detail::DecodeBlock;
using detail::EncodeBlock;
using detail::FastStep;
using detail::kFastProbBits;
using detail::kTableSymbols;
using detail::Step;

// Symbols that are coded in one call of a kernel: a multiple of every number of ways, and few
// enough that their table numbers stay in the first-level cache.
constexpr std::size_t kBlock = std::size_t{1} << 13;
static_assert(kBlock % kMaxWays == 0);

using States = std::array<std::uint32_t, kMaxWays>;

// --- encoder step -------------------------------------------------------------------------------
//
// Plain version: the state is cut into quotient and remainder by the frequency, and the gap between
// them is filled with a number in the slots of the symbol.
constexpr std::uint32_t push_plain(std::uint32_t state, std::uint32_t freq, std::uint32_t cum,
                                   unsigned prob_bits) {
  return ((state / freq) << prob_bits) + state % freq + cum;
}

// Without division. With N = 1 << prob_bits and q = state / freq,
//   (q << prob_bits) + (state - q * freq) + cum  =  state + cum + q * (N - freq),
// and q = state * m >> F with F = 32 + prob_bits, m = ceil(2^F / freq) = (2^F + e) / freq, e <
// freq. Renormalization has made state < freq * 2^(32 - prob_bits), hence
//   exact:       the error state * e / (freq * 2^F) stays below 1 / freq, as
//                state * e < freq^2 * 2^(32 - prob_bits) <= 2^(32 + prob_bits) = 2^F;
//   no overflow: state * m <= (freq * 2^(32 - prob_bits) - 1) * (2^F + e) / freq
//                           = 2^64 + e * 2^(32 - prob_bits) - (2^F + e) / freq < 2^64,
//                as e * freq * 2^(32 - prob_bits) < 2^F by the line above.
constexpr Step make_step(std::uint32_t freq, std::uint32_t cum, unsigned prob_bits) {
  const std::uint64_t numerator = std::uint64_t{1} << (kStateBits + prob_bits);
  return {.limit = std::uint64_t{freq} << (kStateBits - prob_bits),
          .reciprocal = freq == 0 ? 0 : (numerator + freq - 1) / freq,
          .cum = cum,
          .complement = (std::uint32_t{1} << prob_bits) - freq};
}

constexpr std::uint32_t push(std::uint32_t state, const Step& step, unsigned prob_bits) {
  const auto quotient =
      static_cast<std::uint32_t>(state * step.reciprocal >> (kStateBits + prob_bits));
  return state + step.cum + quotient * step.complement;
}

// For vectors, 12 bits, and a reciprocal of 32 bits: q = (state * m >> 32) >> s with s = l - 1,
// 2^(l - 1) < freq <= 2^l, m = ceil(2^(31 + l) / freq) < 2^32. The same argument asks for
// state * e < 2^(31 + l): it holds up to freq = 2^11, as state * e < freq^2 * 2^20 <= 2^(2l + 20),
// and above for most frequencies; is_fast says which. At freq = 1, m = 2^32 - 1 gives q - 1, which
// a bias of N - 1 makes good.
constexpr bool is_fast(std::uint32_t freq) {
  if (freq == 0 || freq >> kFastProbBits != 0) return freq == 0;
  const auto log = static_cast<unsigned>(std::bit_width(freq - 1));
  const std::uint64_t numerator = std::uint64_t{1} << (31 + log);
  const std::uint64_t error = (freq - numerator % freq) % freq;
  return (std::uint64_t{freq} << 20) * error <= numerator;
}

constexpr FastStep make_fast_step(std::uint32_t freq, std::uint32_t cum) {
  if (freq == 0) return {0, 0, 0, 0};
  const std::uint32_t slots = std::uint32_t{1} << kFastProbBits;
  const std::uint32_t limit = freq << (kStateBits - kFastProbBits);
  if (freq == 1) return {~std::uint32_t{0}, limit, cum + slots - 1, slots - freq};
  const auto log = static_cast<unsigned>(std::bit_width(freq - 1));
  const std::uint64_t numerator = std::uint64_t{1} << (31 + log);
  return {static_cast<std::uint32_t>((numerator + freq - 1) / freq), limit, cum,
          (slots - freq) | (log - 1) << 16};
}

constexpr std::uint32_t push_fast(std::uint32_t state, const FastStep& step) {
  const auto high = static_cast<std::uint32_t>(std::uint64_t{state} * step.reciprocal >> 32);
  return state + step.bias + (high >> (step.factor >> 16)) * (step.factor & 0xFFFF);
}

consteval bool pushes_equal_plain() {
  for (unsigned prob_bits = kMinProbBits; prob_bits <= kMaxProbBits; ++prob_bits) {
    const std::uint32_t slots = std::uint32_t{1} << prob_bits;
    for (const std::uint32_t freq : {1u, 2u, 3u, 7u, slots / 2 + 1, slots - 1, slots}) {
      const Step step = make_step(freq, slots - freq, prob_bits);
      const auto last = static_cast<std::uint32_t>(step.limit - 1);
      for (const std::uint32_t state : {kStateLower, last / freq * freq - 1, last - freq, last}) {
        const std::uint32_t plain = push_plain(state, freq, slots - freq, prob_bits);
        if (push(state, step, prob_bits) != plain) return false;
        if (prob_bits == kFastProbBits && is_fast(freq) && freq < slots &&
            push_fast(state, make_fast_step(freq, slots - freq)) != plain) {
          return false;
        }
      }
    }
  }
  return true;
}
static_assert(pushes_equal_plain());

// --- tables -------------------------------------------------------------------------------------

struct EncodeTables {
  std::vector<Step> steps;
  std::vector<FastStep> fast;  // empty where vectors cannot be used
};

EncodeTables make_encode_tables(const Model& model, unsigned prob_bits, bool wants_fast,
                                std::span<const std::uint8_t> stand_ins) {
  EncodeTables tables;
  tables.steps.resize(model.tables() * kTableSymbols);
  wants_fast = wants_fast && std::ranges::all_of(model.freqs, is_fast);
  if (wants_fast) tables.fast.resize(model.tables() * kTableSymbols);
  std::array<std::uint32_t, kMaxAlphabet + 1> cums{};
  for (std::size_t table = 0; table < model.tables(); ++table) {
    const auto freqs = model.freqs.subspan(table * model.alphabet, model.alphabet);
    for (std::size_t s = 0; s < freqs.size(); ++s) cums[s + 1] = cums[s] + freqs[s];
    for (std::size_t s = 0; s < freqs.size(); ++s) {
      const std::size_t coded = stand_ins.empty() ? s : stand_ins[s];
      const std::size_t at = table * kTableSymbols + s;
      tables.steps[at] = make_step(freqs[coded], cums[coded], prob_bits);
      if (wants_fast) tables.fast[at] = make_fast_step(freqs[coded], cums[coded]);
    }
  }
  return tables;
}

// Calls `fill(freq, symbol, first slot)` for each symbol with slots, table after table.
template <class Fill>
void for_each_span(const Model& model, Fill fill) {
  std::size_t slot = 0;
  for (std::size_t i = 0; i < model.freqs.size(); ++i) {
    const std::uint32_t freq = model.freqs[i];
    if (freq != 0) fill(freq, static_cast<std::uint32_t>(i % model.alphabet), slot);
    slot += freq;
  }
}

std::vector<std::uint64_t> make_slots(const Model& model, unsigned prob_bits) {
  std::vector<std::uint64_t> slots(model.tables() << prob_bits);
  for_each_span(model, [&](std::uint32_t freq, std::uint32_t symbol, std::size_t slot) {
    const std::uint64_t entry = std::uint64_t{symbol} << 32 | freq << 16;
    for (std::uint32_t k = 0; k < freq; ++k) slots[slot + k] = entry + k;
  });
  return slots;
}

std::vector<std::uint32_t> make_fast_slots(const Model& model) {
  std::vector<std::uint32_t> slots(model.tables() << kFastProbBits);
  for_each_span(model, [&](std::uint32_t freq, std::uint32_t symbol, std::size_t slot) {
    std::uint32_t* const to = &slots[slot];
    const std::uint32_t entry = symbol << 24 | freq << 12;
    for (std::uint32_t k = 0; k < freq; ++k) to[k] = entry + k;
  });
  return slots;
}

// --- instruction sets ---------------------------------------------------------------------------

// The tier whose kernel takes this many ways; scalar for what no vector kernel takes.
CpuTier fitting_tier(Params params) {
  if (params.prob_bits != kFastProbBits || params.ways < 8) return CpuTier::kScalar;
  return params.ways < 16 ? std::min(cpu_tier(), CpuTier::kAvx2) : cpu_tier();
}

void encode_rows(CpuTier tier, EncodeBlock& block) {
#ifdef FLYWEIGHT_X86
  if (tier == CpuTier::kAvx512) return detail::encode_avx512(block);
  if (tier == CpuTier::kAvx2) return detail::encode_avx2(block);
#endif
  (void)tier;
  detail::encode_scalar(block);
}

std::size_t decode_rows(CpuTier tier, DecodeBlock& block) {
#ifdef FLYWEIGHT_X86
  if (tier == CpuTier::kAvx512) return detail::decode_avx512(block);
  if (tier == CpuTier::kAvx2) return detail::decode_avx2(block);
#endif
  (void)tier;
  return detail::decode_scalar(block);
}

// Table numbers of the symbols from `begin` on; null where there is one table.
const std::uint8_t* fill_contexts(const Model& model, std::size_t begin,
                                  std::span<std::uint8_t> contexts) {
  if (!model.has_classes()) return nullptr;
  const std::size_t cols = model.col_classes.size();
  const auto last = static_cast<unsigned>(model.tables() - 1);
  std::size_t row = begin / cols;
  std::size_t col = begin % cols;
  for (std::size_t i = 0; i < contexts.size(); ++row, col = 0) {
    const std::size_t run = std::min(cols - col, contexts.size() - i);
    const unsigned row_class = model.row_classes[row];
    for (std::size_t k = 0; k < run; ++k) {
      const unsigned sum = row_class + model.col_classes[col + k];
      contexts[i + k] = static_cast<std::uint8_t>(std::min(sum, last));
    }
    i += run;
  }
  return contexts.data();
}

// --- checks -------------------------------------------------------------------------------------

void check_ways(unsigned ways) {
  if (!std::has_single_bit(ways) || ways > kMaxWays) {
    fail<InvalidArgument>("rans: got ways=", ways, ", expected a power of two up to ", kMaxWays);
  }
}

void check_hidden(std::size_t words, unsigned ways) {
  if (words != 0 && words != ways) {
    fail<InvalidArgument>("rans: got ", words, " hidden words, expected one for each of ", ways,
                          " ways, or none");
  }
}

void check_model(const Model& model, Params params, std::size_t count) {
  check_ways(params.ways);
  check_alphabet(model.alphabet);
  const std::size_t tables = model.tables();
  if (tables < 1 || tables > kMaxTables || model.freqs.size() % model.alphabet != 0) {
    fail<InvalidArgument>("rans: got ", model.freqs.size(), " frequencies for an alphabet of ",
                          model.alphabet, ", expected 1 to ", kMaxTables, " tables of them");
  }
  for (std::size_t t = 0; t < tables; ++t) {
    check_freqs(model.freqs.subspan(t * model.alphabet, model.alphabet), params.prob_bits);
  }
  if (!model.has_classes() && tables > 1) {
    fail<InvalidArgument>("rans: ", tables, " tables need row and column classes");
  }
  if (model.row_classes.empty() != model.col_classes.empty() && count > 0) {
    fail<InvalidArgument>("rans: row and column classes go together");
  }
  if (model.has_classes() &&
      checked_mul(model.row_classes.size(), model.col_classes.size()) != count) {
    fail<InvalidArgument>("rans: ", model.row_classes.size(), " rows and ",
                          model.col_classes.size(), " columns, but ", count, " symbols");
  }
}

void check_symbols(std::span<const std::uint8_t> symbols, const Model& model) {
  std::array<std::uint8_t, kBlock> contexts;
  for (std::size_t begin = 0; begin < symbols.size(); begin += kBlock) {
    const auto block = symbols.subspan(begin, std::min(kBlock, symbols.size() - begin));
    const auto* tables = fill_contexts(model, begin, std::span(contexts).first(block.size()));
    for (std::size_t i = 0; i < block.size(); ++i) {
      const std::size_t row = (tables == nullptr ? 0 : tables[i]) * model.alphabet;
      if (block[i] >= model.alphabet || model.freqs[row + block[i]] == 0) {
        fail<InvalidArgument>("rans: symbol ", unsigned{block[i]}, " at position ", begin + i,
                              " has no frequency in the alphabet of ", model.alphabet);
      }
    }
  }
}

}  // namespace

// --- public functions ---------------------------------------------------------------------------

std::size_t encode_bound(std::size_t count, unsigned ways) {
  check_ways(ways);
  return checked_add(ways * kStateBytes, checked_mul(count, kWordBytes));
}

std::size_t encode(std::span<const std::uint8_t> symbols, const Model& model, Params params,
                   std::span<const std::uint16_t> hidden, std::span<std::byte> stream) {
  check_model(model, params, symbols.size());
  check_hidden(hidden.size(), params.ways);
  check_symbols(symbols, model);
  return detail::encode(symbols, model, params, hidden, {}, stream);
}

std::size_t detail::encode(std::span<const std::uint8_t> symbols, const Model& model, Params params,
                           std::span<const std::uint16_t> hidden,
                           std::span<const std::uint8_t> stand_ins, std::span<std::byte> stream) {
  const CpuTier tier = fitting_tier(params);
  const EncodeTables tables =
      make_encode_tables(model, params.prob_bits, tier != CpuTier::kScalar, stand_ins);
  States states;
  for (unsigned w = 0; w < params.ways; ++w) {
    states[w] = kStateLower | (hidden.empty() ? std::uint32_t{0} : hidden[w]);
  }
  EncodeBlock block{.symbols = nullptr,
                    .contexts = nullptr,
                    .count = 0,
                    .states = states.data(),
                    .ways = params.ways,
                    .prob_bits = params.prob_bits,
                    .cursor = stream.data() + stream.size(),
                    .steps = tables.steps.data(),
                    .fast = tables.fast.empty() ? nullptr : tables.fast.data(),
                    .alphabet = model.alphabet};
  std::array<std::uint8_t, kBlock> contexts;
  const auto run = [&](CpuTier with, std::size_t begin, std::size_t count) {
    if (count == 0) return;
    const auto room = static_cast<std::size_t>(block.cursor - stream.data());
    require_room(encode_bound(count, params.ways), room, "rans");
    block.symbols = symbols.data() + begin;
    block.contexts = fill_contexts(model, begin, std::span(contexts).first(count));
    block.count = count;
    encode_rows(with, block);
  };
  const CpuTier fast_tier = block.fast == nullptr ? CpuTier::kScalar : tier;
  std::size_t rest = symbols.size();
  const std::size_t partial_row = rest % params.ways;
  run(CpuTier::kScalar, rest - partial_row, partial_row);
  for (rest -= partial_row; rest > 0;) {
    const std::size_t count = rest % kBlock == 0 ? kBlock : rest % kBlock;
    rest -= count;
    run(fast_tier, rest, count);
  }
  require_room(params.ways * kStateBytes, static_cast<std::size_t>(block.cursor - stream.data()),
               "rans");
  block.cursor -= params.ways * kStateBytes;
  for (unsigned w = 0; w < params.ways; ++w) {
    store_le(block.cursor + w * kStateBytes, states[w]);
  }
  return stream.size() - static_cast<std::size_t>(block.cursor - stream.data());
}

std::size_t decode(std::span<const std::byte> stream, const Model& model, Params params,
                   std::span<std::uint16_t> hidden, std::span<std::uint8_t> symbols) {
  check_model(model, params, symbols.size());
  check_hidden(hidden.size(), params.ways);
  const std::size_t state_bytes = params.ways * kStateBytes;
  if (stream.size() < state_bytes) {
    fail<CorruptStream>("rans: stream of ", stream.size(), " bytes cannot hold the ", params.ways,
                        " states of ", kStateBytes, " bytes");
  }
  States states;
  for (unsigned w = 0; w < params.ways; ++w) {
    states[w] = load_le<std::uint32_t>(&stream[w * kStateBytes]);
    if (states[w] < kStateLower) {
      fail<CorruptStream>("rans: state of way ", w, " at byte ", w * kStateBytes,
                          " is below the lower bound ", kStateLower);
    }
  }
  // A frequency of all slots does not fit into the 12 bits of a vector table.
  const bool fits = std::ranges::max(model.freqs) < 1u << kFastProbBits;
  const CpuTier tier = fits ? fitting_tier(params) : CpuTier::kScalar;
  const bool is_fast_table = fits && params.prob_bits == kFastProbBits;
  const auto fast = is_fast_table ? make_fast_slots(model) : std::vector<std::uint32_t>();
  const auto slots =
      is_fast_table ? std::vector<std::uint64_t>() : make_slots(model, params.prob_bits);
  const std::size_t words = (stream.size() - state_bytes) / kWordBytes;
  DecodeBlock block{.symbols = nullptr,
                    .contexts = nullptr,
                    .count = 0,
                    .states = states.data(),
                    .ways = params.ways,
                    .prob_bits = params.prob_bits,
                    .cursor = stream.data() + state_bytes,
                    .end = stream.data() + state_bytes + words * kWordBytes,
                    .fast = is_fast_table ? fast.data() : nullptr,
                    .slots = slots.data()};
  std::array<std::uint8_t, kBlock> contexts;
  for (std::size_t begin = 0; begin < symbols.size(); begin += kBlock) {
    const std::size_t count = std::min(kBlock, symbols.size() - begin);
    const auto* tables = fill_contexts(model, begin, std::span(contexts).first(count));
    std::size_t done = 0;
    if (tier != CpuTier::kScalar) {
      block.symbols = &symbols[begin];
      block.contexts = tables;
      block.count = count - count % params.ways;
      done = decode_rows(tier, block);
    }
    if (done == count) continue;
    block.symbols = &symbols[begin + done];
    block.contexts = tables == nullptr ? nullptr : tables + done;
    block.count = count - done;
    const std::size_t more = detail::decode_scalar(block);
    if (done + more != count) {
      fail<CorruptStream>("rans: stream ends at byte ", stream.size(), " while decoding symbol ",
                          begin + done + more, " of ", symbols.size(), " in way ",
                          (done + more) % params.ways);
    }
  }
  const auto read = static_cast<std::size_t>(block.cursor - stream.data());
  for (unsigned w = 0; w < params.ways; ++w) {
    const std::uint32_t word = states[w] ^ kStateLower;
    if (word >> kWordBits != 0 || (hidden.empty() && word != 0)) {
      fail<CorruptStream>("rans: way ", w, " does not end in state ", kStateLower,
                          hidden.empty() ? "" : " and a hidden word", " at byte ", read, " of ",
                          stream.size());
    }
    if (!hidden.empty()) hidden[w] = static_cast<std::uint16_t>(word);
  }
  return read;
}

}  // namespace flyweight::rans
