// Sixteen states to a vector, for AVX-512. See rans_rows.hpp for what the functions promise.
#include <immintrin.h>

#include "rans/rans_rows.hpp"

namespace flyweight::rans::detail {
namespace {

constexpr unsigned kLanes = 16;
constexpr int kStateMask = (1 << kFastProbBits) - 1;
constexpr std::size_t kRegisterSymbols = 64;

__m512i load_bytes(const std::uint8_t* from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// From byte k of lane j to byte 16 * k + j.
struct ByteOrder {
  unsigned char bytes[64];
};

constexpr ByteOrder make_byte_order() {
  ByteOrder order{};
  for (unsigned i = 0; i < 64; ++i) {
    order.bytes[i] = static_cast<unsigned char>(i % kLanes * 4 + i / kLanes);
  }
  return order;
}

alignas(64) constexpr ByteOrder kByteOrder = make_byte_order();

// Into zeros, not into an undefined register: what it held would have to be waited for.
__m512i look_up(const void* table, __m512i index) {
  return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), 0xFFFF, index, table, 4);
}

// The high bytes of all lanes. Four vectors are first shifted into one, byte k of a lane from
// vector k, which takes half of the instructions.
template <unsigned kVectors>
void store_symbols(std::uint8_t* to, const __m512i (&entries)[kVectors]) {
  if constexpr (kVectors == 4) {
    __m512i bytes = _mm512_srli_epi32(entries[3], 24);
    bytes = _mm512_shldi_epi32(bytes, entries[2], 8);
    bytes = _mm512_shldi_epi32(bytes, entries[1], 8);
    bytes = _mm512_shldi_epi32(bytes, entries[0], 8);
    const __m512i order = _mm512_load_si512(kByteOrder.bytes);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi8(order, bytes));
  } else {
    for (unsigned v = 0; v < kVectors; ++v) {
      const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_srli_epi32(entries[v], 24));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + v * kLanes), bytes);
    }
  }
}

// The blocks are taken by value: a byte that is written might otherwise be one of their members.
template <unsigned kVectors, bool kHasContexts>
std::size_t decode_rows(const DecodeBlock block, const std::byte*& next) {
  constexpr std::size_t kWays = std::size_t{kVectors} * kLanes;
  __m512i states[kVectors];
  for (unsigned v = 0; v < kVectors; ++v) {
    states[v] = _mm512_loadu_si512(block.states + v * kLanes);
  }
  __m512i entries[kVectors];
  const std::byte* cursor = block.cursor;
  std::size_t i = 0;
  // A vector reads 16 words and takes at most as many, so a row stays within a word per way.
  while (i < block.count && static_cast<std::size_t>(block.end - cursor) >= 2 * kWays) {
#pragma GCC unroll 4
    for (unsigned v = 0; v < kVectors; ++v, i += kLanes) {
      const __m512i state = states[v];
      __m512i index = _mm512_and_si512(state, _mm512_set1_epi32(kStateMask));
      if constexpr (kHasContexts) {
        const __m512i table = _mm512_slli_epi32(load_bytes(block.contexts + i), kFastProbBits);
        index = _mm512_or_si512(index, table);
      }
      const __m512i entry = look_up(block.fast, index);
      entries[v] = entry;
      const __m512i freq =
          _mm512_and_si512(_mm512_srli_epi32(entry, 12), _mm512_set1_epi32(kStateMask));
      const __m512i bias = _mm512_and_si512(entry, _mm512_set1_epi32(kStateMask));
      const __m512i popped =
          _mm512_add_epi32(_mm512_mullo_epi32(freq, _mm512_srli_epi32(state, kFastProbBits)), bias);
      const __mmask16 takes = _mm512_cmplt_epu32_mask(popped, _mm512_set1_epi32(1 << 16));
      const __m512i words =
          _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(cursor)));
      const __m512i mine = _mm512_maskz_expand_epi32(takes, words);
      states[v] = _mm512_or_si512(_mm512_mask_slli_epi32(popped, takes, popped, 16), mine);
      cursor += 2 * static_cast<unsigned>(_mm_popcnt_u32(takes));
    }
    store_symbols(block.symbols + i - kWays, entries);
  }
  for (unsigned v = 0; v < kVectors; ++v) {
    _mm512_storeu_si512(block.states + v * kLanes, states[v]);
  }
  next = cursor;
  return i;
}

// High halves of the products of unsigned 32-bit lanes.
__m512i multiply_high(__m512i a, __m512i b) {
  const __m512i even = _mm512_mul_epu32(a, b);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
  return _mm512_castps_si512(
      _mm512_mask_movehdup_ps(_mm512_castsi512_ps(odd), 0x5555, _mm512_castsi512_ps(even)));
}

// Steps in two words a symbol: the reciprocal, and
//   bits 0..12 bias, 13..16 shift of the quotient, 20..31 frequency (so that the limit is a mask).
constexpr std::uint32_t pack_step(const FastStep& step) {
  return step.limit | (step.factor >> 16) << 13 | step.bias;
}

struct StepLanes {
  __m512i reciprocal, packed;
};

// Up to 64 symbols, one table: everything in eight registers.
class RegisterSteps {
 public:
  explicit RegisterSteps(const EncodeBlock& block) {
    alignas(64) std::uint32_t reciprocals[kRegisterSymbols];
    alignas(64) std::uint32_t packed[kRegisterSymbols];
    for (std::size_t s = 0; s < kRegisterSymbols; ++s) {
      reciprocals[s] = block.fast[s].reciprocal;
      packed[s] = pack_step(block.fast[s]);
    }
    for (unsigned k = 0; k < 4; ++k) {
      reciprocals_[k] = _mm512_load_si512(reciprocals + k * kLanes);
      packed_[k] = _mm512_load_si512(packed + k * kLanes);
    }
  }

  StepLanes at(const EncodeBlock& block, std::size_t i) const {
    const __m512i symbols = load_bytes(block.symbols + i);
    const __mmask16 is_high = _mm512_test_epi32_mask(symbols, _mm512_set1_epi32(32));
    return {select(reciprocals_, symbols, is_high), select(packed_, symbols, is_high)};
  }

 private:
  static __m512i select(const __m512i (&table)[4], __m512i symbols, __mmask16 is_high) {
    const __m512i low = _mm512_permutex2var_epi32(table[0], symbols, table[1]);
    const __m512i high = _mm512_permutex2var_epi32(table[2], symbols, table[3]);
    return _mm512_mask_mov_epi32(low, is_high, high);
  }

  __m512i reciprocals_[4];
  __m512i packed_[4];
};

// Any alphabet, any number of tables: rows of four fields, of which three are put together.
class MemorySteps {
 public:
  explicit MemorySteps(const EncodeBlock& block)
      : fields_(reinterpret_cast<const int*>(block.fast)) {}

  StepLanes at(const EncodeBlock& block, std::size_t i) const {
    __m512i row = load_bytes(block.symbols + i);
    if (block.contexts != nullptr) {
      row = _mm512_or_si512(row, _mm512_slli_epi32(load_bytes(block.contexts + i), 8));
    }
    row = _mm512_slli_epi32(row, 2);
    const __m512i limit = look_up(fields_ + 1, row);
    const __m512i bias = look_up(fields_ + 2, row);
    const __m512i factor = look_up(fields_ + 3, row);
    const __m512i shift = _mm512_slli_epi32(_mm512_srli_epi32(factor, 16), 13);
    return {look_up(fields_, row), _mm512_or_si512(limit, _mm512_or_si512(bias, shift))};
  }

 private:
  const int* fields_;
};

template <unsigned kVectors, class Steps>
std::byte* encode_rows(const EncodeBlock block) {
  const Steps steps(block);
  __m512i states[kVectors];
  for (unsigned v = 0; v < kVectors; ++v) {
    states[v] = _mm512_loadu_si512(block.states + v * kLanes);
  }
  std::byte* cursor = block.cursor;
  for (std::size_t i = block.count; i > 0;) {
#pragma GCC unroll 4
    for (unsigned k = 0; k < kVectors; ++k) {
      const unsigned v = kVectors - 1 - k;
      i -= kLanes;
      const StepLanes step = steps.at(block, i);
      const __m512i state = states[v];
      const __m512i limit = _mm512_and_si512(step.packed, _mm512_set1_epi32(~0 << 20));
      const __mmask16 gives = _mm512_cmpge_epu32_mask(state, limit);
      const auto count = static_cast<unsigned>(_mm_popcnt_u32(gives));
      const __m256i words = _mm256_maskz_compress_epi16(gives, _mm512_cvtepi32_epi16(state));
      cursor -= 2 * count;
      _mm256_mask_storeu_epi16(cursor, static_cast<__mmask16>(_bzhi_u32(0xFFFF, count)), words);
      const __m512i rest = _mm512_mask_srli_epi32(state, gives, state, 16);
      const __m512i shift =
          _mm512_and_si512(_mm512_srli_epi32(step.packed, 13), _mm512_set1_epi32(15));
      const __m512i quotient = _mm512_srlv_epi32(multiply_high(rest, step.reciprocal), shift);
      const __m512i complement = _mm512_sub_epi32(_mm512_set1_epi32(1 << kFastProbBits),
                                                  _mm512_srli_epi32(step.packed, 20));
      const __m512i bias = _mm512_and_si512(step.packed, _mm512_set1_epi32(0x1FFF));
      states[v] =
          _mm512_add_epi32(_mm512_add_epi32(rest, bias), _mm512_mullo_epi32(quotient, complement));
    }
  }
  for (unsigned v = 0; v < kVectors; ++v) {
    _mm512_storeu_si512(block.states + v * kLanes, states[v]);
  }
  return cursor;
}

template <unsigned kVectors>
void encode_vectors(EncodeBlock& block) {
  const bool fits = block.contexts == nullptr && block.alphabet <= kRegisterSymbols;
  block.cursor = fits ? encode_rows<kVectors, RegisterSteps>(block)
                      : encode_rows<kVectors, MemorySteps>(block);
}

template <unsigned kVectors>
std::size_t decode_vectors(DecodeBlock& block) {
  return block.contexts == nullptr ? decode_rows<kVectors, false>(block, block.cursor)
                                   : decode_rows<kVectors, true>(block, block.cursor);
}

}  // namespace

std::size_t collect_members_avx512(const std::uint8_t* bytes, std::size_t count, const ByteSet& set,
                                   std::uint8_t* members, std::size_t capacity) noexcept {
  constexpr std::size_t kBytes = sizeof(__m512i);
  const __m512i table0 = _mm512_loadu_si512(set.members);
  const __m512i table1 = _mm512_loadu_si512(set.members + 64);
  const __m512i table2 = _mm512_loadu_si512(set.members + 128);
  const __m512i table3 = _mm512_loadu_si512(set.members + 192);
  std::size_t found = 0;
  for (std::size_t i = 0; i < count; i += kBytes) {
    const std::size_t size = count - i < kBytes ? count - i : kBytes;
    const __mmask64 present = ~std::uint64_t{0} >> (kBytes - size);
    const __m512i group = _mm512_maskz_loadu_epi8(present, bytes + i);
    const __mmask64 upper = _mm512_movepi8_mask(group);
    const __m512i low = _mm512_permutex2var_epi8(table0, group, table1);
    const __m512i high = _mm512_permutex2var_epi8(table2, group, table3);
    const __mmask64 mask =
        present & ((_mm512_movepi8_mask(low) & ~upper) | (_mm512_movepi8_mask(high) & upper));
    const auto hits = static_cast<std::size_t>(_mm_popcnt_u64(mask));
    if (hits == 0) continue;
    if (hits > capacity - found) return capacity + 1;
    const __mmask64 kept = ~std::uint64_t{0} >> (kBytes - hits);
    _mm512_mask_storeu_epi8(members + found, kept, _mm512_maskz_compress_epi8(mask, group));
    found += hits;
  }
  return found;
}

void encode_avx512(EncodeBlock& block) noexcept {
  switch (block.ways) {
    case 16:
      return encode_vectors<1>(block);
    case 32:
      return encode_vectors<2>(block);
    default:
      return encode_vectors<4>(block);
  }
}

std::size_t decode_avx512(DecodeBlock& block) noexcept {
  switch (block.ways) {
    case 16:
      return decode_vectors<1>(block);
    case 32:
      return decode_vectors<2>(block);
    default:
      return decode_vectors<4>(block);
  }
}

}  // namespace flyweight::rans::detail
