#ifndef __AVX2__
#error "this file needs the flags of its instruction set, see CMakeLists.txt"
#endif
#include <immintrin.h>

#include "bitpack/bitpack_kernels.hpp"

namespace flyweight::bitpack::detail {
namespace {

constexpr std::size_t kVector = 32;  // symbols per step
constexpr unsigned kLane = 16;       // shuffles stay within lanes of 16 bytes

struct alignas(kVector) Bytes {
  std::uint8_t at[kVector];
};
struct alignas(kVector) Words {
  std::uint16_t at[kVector / 2];
};

template <class Table>
__m256i load_table(const Table& table) noexcept {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(table.at));
}

__m256i load(const std::uint8_t* from) noexcept {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

void store(std::uint8_t* to, __m256i value) noexcept {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}

// A lane of 16 symbols takes 2 * kBits bytes and moves as 16: what a store writes too much the next
// one overwrites, and what a load reads too much no shuffle picks. So a step needs this much room.
template <unsigned kBits>
constexpr std::size_t kRoom = std::size_t{2} * kBits + kLane;

template <unsigned kBits>
bool has_step(std::size_t count, std::size_t room) noexcept {
  return count >= kVector && room >= kRoom<kBits>;
}

std::uint8_t or_bytes(__m256i x) noexcept {
  __m128i y = _mm_or_si128(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_or_si128(y, _mm_srli_si128(y, 8));
  auto z = static_cast<std::uint64_t>(_mm_cvtsi128_si64(y));
  for (unsigned half = 32; half >= 8; half /= 2) z |= z >> half;
  return static_cast<std::uint8_t>(z);
}

// --- packing -------------------------------------------------------------------------------------
// Eight symbols, in 64 bits, are joined in three steps:
//   bytes s0 s1 ...    -> 16-bit s0 + (s1 << kBits)       one multiply-add (symbols < 128)
//   16-bit p0 p1 ...   -> 32-bit p0 + (p1 << 2 * kBits)   one multiply-add
//   32-bit q0 q1       -> q0 to the top of its half, then all 64 bits down: q1 has moved next to q0
// The `kBits` low bytes of each are then put side by side.

template <unsigned kBits>
constexpr Bytes compress_table() {
  Bytes table{};
  for (unsigned i = 0; i < kVector; ++i) {
    const unsigned to = i % kLane;
    table.at[i] = static_cast<std::uint8_t>(to < 2 * kBits ? to / kBits * 8 + to % kBits : 0x80);
  }
  return table;
}

template <unsigned kBits>
__m256i join_eights(__m256i symbols) noexcept {
  const __m256i by_pair = _mm256_set1_epi16(static_cast<short>(1 | 1 << (8 + kBits)));
  const __m256i by_four = _mm256_set1_epi32(1 | 1 << (16 + 2 * kBits));
  const __m256i tops = _mm256_set1_epi64x(32 - 4 * kBits);  // of the even 32-bit lanes
  const __m256i pairs = _mm256_maddubs_epi16(by_pair, symbols);
  const __m256i fours = _mm256_madd_epi16(pairs, by_four);
  return _mm256_srli_epi64(_mm256_sllv_epi32(fours, tops), 32 - 4 * kBits);
}

template <unsigned kBits>
std::uint8_t pack(const std::uint8_t* codes, std::size_t count, std::uint8_t lo,
                  std::byte* packed) noexcept {
  static constexpr Bytes kCompress = compress_table<kBits>();
  const __m256i compress = load_table(kCompress);
  const __m256i los = _mm256_set1_epi8(static_cast<char>(lo));
  std::size_t room = (count / kGroup) * kBits;
  __m256i seen = _mm256_setzero_si256();
  for (; has_step<kBits>(count, room); count -= kVector, room -= 4 * kBits) {
    const __m256i symbols = _mm256_sub_epi8(load(codes), los);
    seen = _mm256_or_si256(seen, symbols);
    const __m256i dense = _mm256_shuffle_epi8(join_eights<kBits>(symbols), compress);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(packed), _mm256_castsi256_si128(dense));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + 2 * kBits),
                     _mm256_extracti128_si256(dense, 1));
    codes += kVector;
    packed += 4 * kBits;
  }
  const std::uint8_t rest = kScalar.pack[kBits - 1](codes, count, lo, packed);
  return static_cast<std::uint8_t>(or_bytes(seen) | rest);
}

template <>
std::uint8_t pack<8>(const std::uint8_t* codes, std::size_t count, std::uint8_t lo,
                     std::byte* packed) noexcept {
  const __m256i los = _mm256_set1_epi8(static_cast<char>(lo));
  for (; count >= kVector; count -= kVector, codes += kVector, packed += kVector) {
    store(reinterpret_cast<std::uint8_t*>(packed), _mm256_sub_epi8(load(codes), los));
  }
  return kScalar.pack[7](codes, count, lo, packed);
}

// --- unpacking -----------------------------------------------------------------------------------
// A symbol starts at bit kBits * i % 8 of byte kBits * i / 8 and ends before bit 15 of the 16 from
// there. A shuffle gives each symbol of half a lane such 16 bits, a multiplication moves its end to
// the top, which drops what lies above, and a shift moves it down, which drops what lies below.

template <unsigned kBits>
constexpr Bytes spread_table(unsigned first) {
  Bytes table{};
  for (unsigned i = 0; i < kVector; ++i) {
    const unsigned symbol = first + i % kLane / 2;
    table.at[i] = static_cast<std::uint8_t>(symbol * kBits / 8 + i % 2);
  }
  return table;
}

template <unsigned kBits>
constexpr Words multiplier_table() {
  Words table{};
  for (unsigned i = 0; i < kVector / 2; ++i) {
    const unsigned first_bit = i % 8 * kBits % 8;
    table.at[i] = static_cast<std::uint16_t>(1 << (16 - kBits - first_bit));
  }
  return table;
}

// As (s0 .. s7, s8 .. s15) in both lanes; a multiplier of symbol s serves symbol s + 8, too.
template <unsigned kBits>
void unpack(const std::byte* packed, std::size_t readable, std::uint8_t lo, std::uint8_t* codes,
            std::size_t count) noexcept {
  static constexpr Bytes kSpreadFirst = spread_table<kBits>(0);
  static constexpr Bytes kSpreadSecond = spread_table<kBits>(8);
  static constexpr Words kMultiplier = multiplier_table<kBits>();
  const __m256i spread_first = load_table(kSpreadFirst);
  const __m256i spread_second = load_table(kSpreadSecond);
  const __m256i multiplier = load_table(kMultiplier);
  const __m256i los = _mm256_set1_epi8(static_cast<char>(lo));
  for (; has_step<kBits>(count, readable); count -= kVector, readable -= 4 * kBits) {
    const __m256i bytes = _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(packed + 2 * kBits),
                                              reinterpret_cast<const __m128i*>(packed));
    __m256i first = _mm256_shuffle_epi8(bytes, spread_first);
    __m256i second = _mm256_shuffle_epi8(bytes, spread_second);
    first = _mm256_srli_epi16(_mm256_mullo_epi16(first, multiplier), 16 - kBits);
    second = _mm256_srli_epi16(_mm256_mullo_epi16(second, multiplier), 16 - kBits);
    store(codes, _mm256_add_epi8(_mm256_packus_epi16(first, second), los));
    packed += 4 * kBits;
    codes += kVector;
  }
  kScalar.unpack[kBits - 1](packed, readable, lo, codes, count);
}

template <>
void unpack<8>(const std::byte* packed, std::size_t readable, std::uint8_t lo, std::uint8_t* codes,
               std::size_t count) noexcept {
  const __m256i los = _mm256_set1_epi8(static_cast<char>(lo));
  for (; count >= kVector; count -= kVector, packed += kVector, codes += kVector) {
    readable -= kVector;
    store(codes, _mm256_add_epi8(load(reinterpret_cast<const std::uint8_t*>(packed)), los));
  }
  kScalar.unpack[7](packed, readable, lo, codes, count);
}

// --- scaling -------------------------------------------------------------------------------------

__m256 scale_eight(const std::int8_t* codes, __m256 scale) noexcept {
  const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
  return _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)), scale);
}

// To nearest even, as in the scalar kernel; in the low half of each 32 bits.
__m256i round_eight(__m256 values) noexcept {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF));
  return _mm256_srli_epi32(_mm256_add_epi32(bits, bias), 16);
}

void dequantize_float32(const std::int8_t* codes, std::size_t count, float scale,
                        float* values) noexcept {
  const __m256 scales = _mm256_set1_ps(scale);
  for (; count >= 16; count -= 16, codes += 16, values += 16) {
    _mm256_storeu_ps(values, scale_eight(codes, scales));
    _mm256_storeu_ps(values + 8, scale_eight(codes + 8, scales));
  }
  kScalar.dequantize_float32(codes, count, scale, values);
}

// One value past the caches: neighbors are combined into whole lines before they leave the core.
void stream_one(const std::int8_t* code, float scale, float* value) noexcept {
  const __m128 product = _mm_set_ss(static_cast<float>(*code) * scale);
  _mm_stream_si32(reinterpret_cast<int*>(value), _mm_cvtsi128_si32(_mm_castps_si128(product)));
}

void stream_float32(const std::int8_t* codes, std::size_t count, float scale,
                    float* values) noexcept {
  const auto is_aligned = [](const float* at) noexcept {
    return reinterpret_cast<std::uintptr_t>(at) % sizeof(__m256) == 0;
  };
  for (; count > 0 && !is_aligned(values); --count) stream_one(codes++, scale, values++);
  const __m256 scales = _mm256_set1_ps(scale);
  for (; count >= 8; count -= 8, codes += 8, values += 8) {
    _mm256_stream_ps(values, scale_eight(codes, scales));
  }
  for (; count > 0; --count) stream_one(codes++, scale, values++);
}

void dequantize_bfloat16(const std::int8_t* codes, std::size_t count, float scale,
                         std::uint16_t* values) noexcept {
  const __m256 scales = _mm256_set1_ps(scale);
  for (; count >= 16; count -= 16, codes += 16, values += 16) {
    const __m256i first = round_eight(scale_eight(codes, scales));
    const __m256i second = round_eight(scale_eight(codes + 8, scales));
    const __m256i mixed = _mm256_packus_epi32(first, second);  // lanes: f0 s0 f1 s1
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values),
                        _mm256_permute4x64_epi64(mixed, _MM_SHUFFLE(3, 1, 2, 0)));
  }
  kScalar.dequantize_bfloat16(codes, count, scale, values);
}

}  // namespace

const Kernels kAvx2 = {
    {pack<1>, pack<2>, pack<3>, pack<4>, pack<5>, pack<6>, pack<7>, pack<8>},
    {unpack<1>, unpack<2>, unpack<3>, unpack<4>, unpack<5>, unpack<6>, unpack<7>, unpack<8>},
    dequantize_float32,
    stream_float32,
    dequantize_bfloat16,
};

}  // namespace flyweight::bitpack::detail
