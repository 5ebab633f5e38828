#if !defined(__AVX512BW__) || !defined(__AVX512VBMI__)
#error "this file needs the flags of its instruction set, see CMakeLists.txt"
#endif
#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 takes the undefined operands of its own intrinsics for ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "bitpack/bitpack_kernels.hpp"

namespace flyweight::bitpack::detail {
namespace {

constexpr std::size_t kVector = 64;  // symbols per step, in eight groups of 64 bits
constexpr std::size_t kFloats = 16;

struct alignas(kVector) Bytes {
  std::uint8_t at[kVector];
};

__m512i load_table(const Bytes& table) noexcept { return _mm512_load_si512(table.at); }

/// The low `count` bits, count up to 64: masked-off bytes are neither read nor written.
__mmask64 first_bytes(std::size_t count) noexcept {
  return count == 0 ? 0 : ~std::uint64_t{0} >> (64 - count);
}

__mmask16 first_floats(std::size_t count) noexcept {
  return static_cast<__mmask16>((1u << count) - 1);
}

std::uint8_t or_bytes(__m512i x) noexcept {
  Bytes bytes;
  _mm512_store_si512(bytes.at, x);
  std::uint8_t all = 0;
  for (const std::uint8_t byte : bytes.at) all |= byte;
  return all;
}

// --- packing -------------------------------------------------------------------------------------
// The eight symbols of a group are joined in three steps:
//   bytes s0 s1 ...    -> 16-bit s0 + (s1 << kBits)       one multiply-add (symbols < 128)
//   16-bit p0 p1 ...   -> 32-bit p0 + (p1 << 2 * kBits)   one multiply-add
//   32-bit q0 q1       -> q0 to the top of its half, then all 64 bits down: q1 has moved next to q0
// The `kBits` low bytes of each group are then put side by side.

template <unsigned kBits>
constexpr Bytes compress_table() {
  Bytes table{};
  for (unsigned to = 0; to < 8 * kBits; ++to) {
    table.at[to] = static_cast<std::uint8_t>(to / kBits * 8 + to % kBits);
  }
  return table;
}

template <unsigned kBits>
__m512i join_groups(__m512i symbols) noexcept {
  if constexpr (kBits == 8) {
    return symbols;
  } else {
    const __m512i by_pair = _mm512_set1_epi16(static_cast<short>(1 | 1 << (8 + kBits)));
    const __m512i by_four = _mm512_set1_epi32(1 | 1 << (16 + 2 * kBits));
    const __m512i tops = _mm512_set1_epi64(32 - 4 * kBits);  // of the even 32-bit lanes
    const __m512i pairs = _mm512_maddubs_epi16(by_pair, symbols);
    const __m512i fours = _mm512_madd_epi16(pairs, by_four);
    return _mm512_srli_epi64(_mm512_sllv_epi32(fours, tops), 32 - 4 * kBits);
  }
}

template <unsigned kBits>
std::uint8_t pack(const std::uint8_t* codes, std::size_t count, std::uint8_t lo,
                  std::byte* packed) noexcept {
  static constexpr Bytes kCompress = compress_table<kBits>();
  const __m512i compress = load_table(kCompress);
  const __m512i los = _mm512_set1_epi8(static_cast<char>(lo));
  __m512i seen = _mm512_setzero_si512();
  for (; count >= kVector; count -= kVector, codes += kVector, packed += 8 * kBits) {
    const __m512i symbols = _mm512_sub_epi8(_mm512_loadu_si512(codes), los);
    seen = _mm512_or_si512(seen, symbols);
    const __m512i dense = _mm512_permutexvar_epi8(compress, join_groups<kBits>(symbols));
    _mm512_mask_storeu_epi8(packed, first_bytes(8 * kBits), dense);
  }
  const __mmask64 rest = first_bytes(count);
  const __m512i symbols = _mm512_maskz_sub_epi8(rest, _mm512_maskz_loadu_epi8(rest, codes), los);
  const __m512i dense = _mm512_permutexvar_epi8(compress, join_groups<kBits>(symbols));
  _mm512_mask_storeu_epi8(packed, first_bytes((count * kBits + 7) / 8), dense);
  return or_bytes(_mm512_or_si512(seen, symbols));
}

// --- unpacking -----------------------------------------------------------------------------------
// A permutation gives each group the eight bytes from its first on, of which kBits are its own; a
// multishift then takes, for symbol k of the group, the eight bits from bit k * kBits on, at most
// up to bit 7 * kBits + 8 <= 64; a mask drops those of the next symbol.

template <unsigned kBits>
constexpr Bytes spread_table() {
  Bytes table{};
  for (unsigned i = 0; i < kVector; ++i) {
    // Bytes behind the 64 read are of no group's own: any index will do.
    table.at[i] = static_cast<std::uint8_t>((i / 8 * kBits + i % 8) % kVector);
  }
  return table;
}

template <unsigned kBits>
constexpr Bytes shift_table() {
  Bytes table{};
  for (unsigned i = 0; i < kVector; ++i) table.at[i] = static_cast<std::uint8_t>(i % 8 * kBits);
  return table;
}

template <unsigned kBits>
void unpack(const std::byte* packed, std::size_t /*readable*/, std::uint8_t lo, std::uint8_t* codes,
            std::size_t count) noexcept {
  static constexpr Bytes kSpread = spread_table<kBits>();
  static constexpr Bytes kShift = shift_table<kBits>();
  const __m512i spread = load_table(kSpread);
  const __m512i shift = load_table(kShift);
  const __m512i low = _mm512_set1_epi8(static_cast<char>((1u << kBits) - 1));
  const __m512i los = _mm512_set1_epi8(static_cast<char>(lo));
  const auto codes_of = [&](__m512i bytes) noexcept {
    const __m512i groups = _mm512_permutexvar_epi8(spread, bytes);
    const __m512i symbols = _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, groups), low);
    return _mm512_add_epi8(symbols, los);
  };
  for (; count >= kVector; count -= kVector, packed += 8 * kBits, codes += kVector) {
    const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes(8 * kBits), packed);
    _mm512_storeu_si512(codes, codes_of(bytes));
  }
  const __m512i bytes = _mm512_maskz_loadu_epi8(first_bytes((count * kBits + 7) / 8), packed);
  _mm512_mask_storeu_epi8(codes, first_bytes(count), codes_of(bytes));
}

// --- scaling -------------------------------------------------------------------------------------

__m512 scale_codes(__m128i codes, __m512 scale) noexcept {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), scale);
}

// To nearest even, as in the scalar kernel.
__m256i round_to_bfloat16(__m512 values) noexcept {
  const __m512i bits = _mm512_castps_si512(values);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, bias), 16));
}

void dequantize_float32(const std::int8_t* codes, std::size_t count, float scale,
                        float* values) noexcept {
  const __m512 scales = _mm512_set1_ps(scale);
  for (; count >= kFloats; count -= kFloats, codes += kFloats, values += kFloats) {
    const __m128i few = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    _mm512_storeu_ps(values, scale_codes(few, scales));
  }
  const __mmask16 rest = first_floats(count);
  const __m128i few = _mm_maskz_loadu_epi8(rest, codes);
  _mm512_mask_storeu_ps(values, rest, scale_codes(few, scales));
}

// One value past the caches: neighbors are combined into whole lines before they leave the core.
void stream_one(const std::int8_t* code, float scale, float* value) noexcept {
  const __m128 product = _mm_set_ss(static_cast<float>(*code) * scale);
  _mm_stream_si32(reinterpret_cast<int*>(value), _mm_cvtsi128_si32(_mm_castps_si128(product)));
}

void stream_float32(const std::int8_t* codes, std::size_t count, float scale,
                    float* values) noexcept {
  const auto is_aligned = [](const float* at) noexcept {
    return reinterpret_cast<std::uintptr_t>(at) % sizeof(__m512) == 0;
  };
  for (; count > 0 && !is_aligned(values); --count) stream_one(codes++, scale, values++);
  const __m512 scales = _mm512_set1_ps(scale);
  for (; count >= kFloats; count -= kFloats, codes += kFloats, values += kFloats) {
    const __m128i few = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    _mm512_stream_ps(values, scale_codes(few, scales));
  }
  for (; count > 0; --count) stream_one(codes++, scale, values++);
}

void dequantize_bfloat16(const std::int8_t* codes, std::size_t count, float scale,
                         std::uint16_t* values) noexcept {
  const __m512 scales = _mm512_set1_ps(scale);
  for (; count >= kFloats; count -= kFloats, codes += kFloats, values += kFloats) {
    const __m128i few = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values),
                        round_to_bfloat16(scale_codes(few, scales)));
  }
  const __mmask16 rest = first_floats(count);
  const __m128i few = _mm_maskz_loadu_epi8(rest, codes);
  _mm256_mask_storeu_epi16(values, rest, round_to_bfloat16(scale_codes(few, scales)));
}

}  // namespace

const Kernels kAvx512 = {
    {pack<1>, pack<2>, pack<3>, pack<4>, pack<5>, pack<6>, pack<7>, pack<8>},
    {unpack<1>, unpack<2>, unpack<3>, unpack<4>, unpack<5>, unpack<6>, unpack<7>, unpack<8>},
    dequantize_float32,
    stream_float32,
    dequantize_bfloat16,
};

}  // namespace flyweight::bitpack::detail
