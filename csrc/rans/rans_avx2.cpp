// Eight states to a vector, for AVX2. See rans_rows.hpp for what the functions promise.
#include <immintrin.h>

#include "rans/rans_rows.hpp"

namespace flyweight::rans::detail {
namespace {

constexpr unsigned kLanes = 8;
constexpr unsigned kStateMask = (1u << kFastProbBits) - 1;

// Which words go where, by the mask of the lanes that take or give one.
struct LaneTables {
  unsigned char rank[256][kLanes];        // decoder: index of the word for each lane
  unsigned char gather[256][2 * kLanes];  // encoder: bytes of the low words of the lanes in the
                                          // mask, in order, at the end of 16 bytes
};

constexpr LaneTables make_lane_tables() {
  LaneTables tables{};
  for (unsigned mask = 0; mask < 256; ++mask) {
    unsigned taken = 0;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      tables.rank[mask][lane] = static_cast<unsigned char>(taken);
      taken += mask >> lane & 1;
    }
    unsigned at = 2 * (kLanes - taken);
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      if ((mask >> lane & 1) == 0) continue;
      tables.gather[mask][at++] = static_cast<unsigned char>(2 * lane);
      tables.gather[mask][at++] = static_cast<unsigned char>(2 * lane + 1);
    }
  }
  return tables;
}

alignas(64) constexpr LaneTables kLaneTables = make_lane_tables();

__m256i load_bytes(const std::uint8_t* from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
}

// Entries at eight indices. Two to a scalar register at a time: on the machines with AVX2 and no
// AVX-512 this is faster than the gather instruction (docs/decisions/0006-ans-streams.md).
__m256i look_up(const std::uint32_t* table, __m256i index) {
  const __m128i low = _mm256_castsi256_si128(index);
  const __m128i high = _mm256_extracti128_si256(index, 1);
  const auto pair = [&](long long two) {
    const auto bits = static_cast<unsigned long long>(two);
    const __m128i first = _mm_cvtsi32_si128(static_cast<int>(table[bits & 0xFFFFFFFF]));
    return _mm_insert_epi32(first, static_cast<int>(table[bits >> 32]), 1);
  };
  const __m128i a =
      _mm_unpacklo_epi64(pair(_mm_cvtsi128_si64(low)), pair(_mm_extract_epi64(low, 1)));
  const __m128i b =
      _mm_unpacklo_epi64(pair(_mm_cvtsi128_si64(high)), pair(_mm_extract_epi64(high, 1)));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
}

// High bytes of the eight lanes.
void store_high_bytes(std::uint8_t* to, __m256i lanes) {
  const __m256i order = _mm256_set1_epi32(0x0F0B0703);
  const __m256i packed = _mm256_shuffle_epi8(lanes, order);
  const __m128i both =
      _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), both);
}

// The blocks are taken by value: a byte that is written might otherwise be one of their members.
template <unsigned kVectors, bool kHasContexts>
std::size_t decode_rows(const DecodeBlock block, const std::byte*& next) {
  constexpr std::size_t kWays = std::size_t{kVectors} * kLanes;
  __m256i states[kVectors];
  for (unsigned v = 0; v < kVectors; ++v) {
    states[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.states + v * kLanes));
  }
  const std::byte* cursor = block.cursor;
  std::size_t i = 0;
  // A vector reads eight words and takes at most as many, so a row stays within a word per way.
  while (i < block.count && static_cast<std::size_t>(block.end - cursor) >= 2 * kWays) {
#pragma GCC unroll 8
    for (unsigned v = 0; v < kVectors; ++v, i += kLanes) {
      const __m256i state = states[v];
      __m256i index = _mm256_and_si256(state, _mm256_set1_epi32(kStateMask));
      if constexpr (kHasContexts) {
        const __m256i table = _mm256_slli_epi32(load_bytes(block.contexts + i), kFastProbBits);
        index = _mm256_or_si256(index, table);
      }
      const __m256i entry = look_up(block.fast, index);
      store_high_bytes(block.symbols + i, entry);
      const __m256i freq =
          _mm256_and_si256(_mm256_srli_epi32(entry, 12), _mm256_set1_epi32(kStateMask));
      const __m256i bias = _mm256_and_si256(entry, _mm256_set1_epi32(kStateMask));
      const __m256i popped =
          _mm256_add_epi32(_mm256_mullo_epi32(freq, _mm256_srli_epi32(state, kFastProbBits)), bias);
      const __m256i takes =
          _mm256_cmpeq_epi32(_mm256_srli_epi32(popped, 16), _mm256_setzero_si256());
      const auto mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(takes)));
      const __m256i words =
          _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(cursor)));
      const __m256i mine = _mm256_permutevar8x32_epi32(words, load_bytes(kLaneTables.rank[mask]));
      const __m256i refilled = _mm256_or_si256(_mm256_slli_epi32(popped, 16), mine);
      states[v] = _mm256_blendv_epi8(popped, refilled, takes);
      cursor += 2 * static_cast<unsigned>(_mm_popcnt_u32(mask));
    }
  }
  for (unsigned v = 0; v < kVectors; ++v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.states + v * kLanes), states[v]);
  }
  next = cursor;
  return i;
}

// High halves of the products of unsigned 32-bit lanes.
__m256i multiply_high(__m256i a, __m256i b) {
  const __m256i even = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
  const __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  return _mm256_blend_epi32(even, odd, 0xAA);
}

struct StepLanes {
  __m256i reciprocal, limit, bias, factor;
};

// The steps of eight symbols, turned from eight rows of four fields into four vectors.
StepLanes load_steps(const FastStep* steps, const std::uint8_t* symbols,
                     const std::uint8_t* contexts) {
  const auto row = [&](unsigned lane) {
    const std::size_t table = contexts == nullptr ? 0 : std::size_t{contexts[lane]} * kTableSymbols;
    return reinterpret_cast<const __m128i*>(steps + table + symbols[lane]);
  };
  const auto rows = [&](unsigned lane) {  // of a lane and of the lane four further on
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(row(lane))),
                                   _mm_loadu_si128(row(lane + 4)), 1);
  };
  const __m256i r0 = rows(0), r1 = rows(1), r2 = rows(2), r3 = rows(3);
  const __m256i low01 = _mm256_unpacklo_epi32(r0, r1), low23 = _mm256_unpacklo_epi32(r2, r3);
  const __m256i high01 = _mm256_unpackhi_epi32(r0, r1), high23 = _mm256_unpackhi_epi32(r2, r3);
  return {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),
          _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
}

template <unsigned kVectors, bool kHasContexts>
std::byte* encode_rows(const EncodeBlock block) {
  __m256i states[kVectors];
  for (unsigned v = 0; v < kVectors; ++v) {
    states[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block.states + v * kLanes));
  }
  std::byte* cursor = block.cursor;
  for (std::size_t i = block.count; i > 0;) {
#pragma GCC unroll 8
    for (unsigned k = 0; k < kVectors; ++k) {
      const unsigned v = kVectors - 1 - k;
      i -= kLanes;
      const StepLanes step =
          load_steps(block.fast, block.symbols + i, kHasContexts ? block.contexts + i : nullptr);
      const __m256i state = states[v];
      // state >= limit, unsigned
      const __m256i gives = _mm256_cmpeq_epi32(_mm256_max_epu32(state, step.limit), state);
      const auto mask = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(gives)));
      const __m256i low = _mm256_and_si256(state, _mm256_set1_epi32(0xFFFF));
      const __m128i words =
          _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
      const __m128i order =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(kLaneTables.gather[mask]));
      // All 16 bytes are written; those in front of the words are overwritten by the next.
      _mm_storeu_si128(reinterpret_cast<__m128i*>(cursor - 16), _mm_shuffle_epi8(words, order));
      cursor -= 2 * static_cast<unsigned>(_mm_popcnt_u32(mask));
      const __m256i rest = _mm256_blendv_epi8(state, _mm256_srli_epi32(state, 16), gives);
      const __m256i quotient = _mm256_srlv_epi32(multiply_high(rest, step.reciprocal),
                                                 _mm256_srli_epi32(step.factor, 16));
      const __m256i complement = _mm256_and_si256(step.factor, _mm256_set1_epi32(0xFFFF));
      states[v] = _mm256_add_epi32(_mm256_add_epi32(rest, step.bias),
                                   _mm256_mullo_epi32(quotient, complement));
    }
  }
  for (unsigned v = 0; v < kVectors; ++v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(block.states + v * kLanes), states[v]);
  }
  return cursor;
}

template <unsigned kVectors>
void encode_vectors(EncodeBlock& block) {
  block.cursor = block.contexts == nullptr ? encode_rows<kVectors, false>(block)
                                           : encode_rows<kVectors, true>(block);
}

template <unsigned kVectors>
std::size_t decode_vectors(DecodeBlock& block) {
  return block.contexts == nullptr ? decode_rows<kVectors, false>(block, block.cursor)
                                   : decode_rows<kVectors, true>(block, block.cursor);
}

}  // namespace

std::size_t collect_members_avx2(const std::uint8_t* bytes, std::size_t count, const ByteSet& set,
                                 std::uint8_t* members, std::size_t capacity) noexcept {
  constexpr std::size_t kBytes = sizeof(__m256i);
  const auto both_lanes = [](const std::uint8_t* from) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  };
  const __m256i lower = both_lanes(set.nibbles[0]);
  const __m256i upper = both_lanes(set.nibbles[1]);
  const __m256i bits = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201));
  const __m256i low_nibble = _mm256_set1_epi8(15);
  alignas(kBytes) std::uint8_t group[kBytes];
  std::size_t found = 0;
  std::size_t i = 0;
  for (; i + kBytes <= count; i += kBytes) {
    const __m256i loaded = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + i));
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(loaded, 4), low_nibble);
    const __m256i low = _mm256_and_si256(loaded, low_nibble);
    const __m256i row = _mm256_blendv_epi8(_mm256_shuffle_epi8(lower, low),
                                           _mm256_shuffle_epi8(upper, low), loaded);
    const __m256i bit = _mm256_and_si256(row, _mm256_shuffle_epi8(bits, high));
    const __m256i is_other = _mm256_cmpeq_epi8(bit, _mm256_setzero_si256());
    auto mask = ~static_cast<unsigned>(_mm256_movemask_epi8(is_other));
    if (mask == 0) continue;
    _mm256_store_si256(reinterpret_cast<__m256i*>(group), loaded);
    for (; mask != 0; mask = _blsr_u32(mask)) {
      if (found == capacity) return capacity + 1;
      members[found++] = group[_tzcnt_u32(mask)];
    }
  }
  const std::size_t rest =
      collect_members_scalar(bytes + i, count - i, set, members + found, capacity - found);
  return found + rest;
}

void encode_avx2(EncodeBlock& block) noexcept {
  switch (block.ways) {
    case 8:
      return encode_vectors<1>(block);
    case 16:
      return encode_vectors<2>(block);
    case 32:
      return encode_vectors<4>(block);
    default:
      return encode_vectors<8>(block);
  }
}

std::size_t decode_avx2(DecodeBlock& block) noexcept {
  switch (block.ways) {
    case 8:
      return decode_vectors<1>(block);
    case 16:
      return decode_vectors<2>(block);
    case 32:
      return decode_vectors<4>(block);
    default:
      return decode_vectors<8>(block);
  }
}

}  // namespace flyweight::rans::detail
