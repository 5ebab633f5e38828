#include <algorithm>
#include <bit>
#include <cstring>

#include "bitpack/bitpack_kernels.hpp"
#include "common/bytes.hpp"

namespace flyweight::bitpack::detail {
namespace {

// Plain version, for fewer than eight symbols: one symbol after the other into an accumulator.
std::uint8_t pack_few(const std::uint8_t* codes, std::size_t count, unsigned bits, std::uint8_t lo,
                      std::byte* packed) noexcept {
  std::uint64_t accumulator = 0;
  std::uint8_t seen = 0;
  unsigned filled = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto symbol = static_cast<std::uint8_t>(codes[i] - lo);
    seen |= symbol;
    accumulator |= static_cast<std::uint64_t>(symbol) << filled;
    filled += bits;
  }
  for (; filled > 0; filled -= std::min(filled, 8u), accumulator >>= 8) {
    *packed++ = static_cast<std::byte>(accumulator);
  }
  return seen;
}

void unpack_few(const std::byte* packed, unsigned bits, std::uint8_t lo, std::uint8_t* codes,
                std::size_t count) noexcept {
  const std::size_t size = (count * bits + 7) / 8;
  std::uint64_t accumulator = 0;
  for (std::size_t i = 0; i < size; ++i) {
    accumulator |= std::to_integer<std::uint64_t>(packed[i]) << (8 * i);
  }
  for (std::size_t i = 0; i < count; ++i) {
    codes[i] = static_cast<std::uint8_t>((accumulator & ((1u << bits) - 1)) + lo);
    accumulator >>= bits;
  }
}

// Fast version, for eight symbols in one 64-bit register, first symbol lowest. Packing closes the
// gaps between neighbors in three steps, each of which halves the number of lanes:
//   8 lanes of  8 bits holding     bits  ->  4 lanes of 16 bits holding 2 * bits
//                                        ->  2 lanes of 32 bits holding 4 * bits
//                                        ->  1 lane  of 64 bits holding 8 * bits
// A step keeps the even lanes in place and moves each odd lane down onto its even neighbor's end.
// Unpacking runs the steps backward.
constexpr std::uint64_t kEven8 = 0x00FF00FF00FF00FF;
constexpr std::uint64_t kEven16 = 0x0000FFFF0000FFFF;
constexpr std::uint64_t kEven32 = 0x00000000FFFFFFFF;

template <unsigned kBits>
std::uint64_t close_gaps(std::uint64_t x) noexcept {
  x = (x & kEven8) | ((x >> 8 & kEven8) << kBits);
  x = (x & kEven16) | ((x >> 16 & kEven16) << (2 * kBits));
  x = (x & kEven32) | ((x >> 32) << (4 * kBits));
  return x;
}

template <unsigned kBits>
std::uint64_t open_gaps(std::uint64_t x) noexcept {
  constexpr std::uint64_t kLow4 = (std::uint64_t{1} << (4 * kBits)) - 1;
  constexpr std::uint64_t kLow2 = ((std::uint64_t{1} << (2 * kBits)) - 1) * 0x0000000100000001;
  constexpr std::uint64_t kLow1 = ((std::uint64_t{1} << kBits) - 1) * 0x0001000100010001;
  x = (x & kLow4) | ((x >> (4 * kBits) & kLow4) << 32);
  x = (x & kLow2) | ((x >> (2 * kBits) & kLow2) << 16);
  x = (x & kLow1) | ((x >> kBits & kLow1) << 8);
  return x;
}

// Sums and differences of eight bytes, each modulo 256: the top bits, which alone could carry into
// a neighbor, are left out and put back with exclusive or.
constexpr std::uint64_t kTops = 0x8080808080808080;
constexpr std::uint64_t kOnes = 0x0101010101010101;

std::uint64_t add_bytes(std::uint64_t a, std::uint64_t b) noexcept {
  return ((a & ~kTops) + (b & ~kTops)) ^ ((a ^ b) & kTops);
}

std::uint64_t subtract_bytes(std::uint64_t a, std::uint64_t b) noexcept {
  return ((a | kTops) - (b & ~kTops)) ^ ((a ^ ~b) & kTops);
}

std::uint64_t load_codes(const std::uint8_t* codes) noexcept {
  return load_le<std::uint64_t>(reinterpret_cast<const std::byte*>(codes));
}

void store_codes(std::uint8_t* codes, std::uint64_t eight) noexcept {
  store_le(reinterpret_cast<std::byte*>(codes), eight);
}

// How many groups can move their `kBits` bytes as a full register within `size` bytes: what a store
// writes too much the next group overwrites, and what a load reads too much open_gaps masks away.
template <unsigned kBits>
std::size_t full_register_groups(std::size_t groups, std::size_t size) noexcept {
  if (size < sizeof(std::uint64_t)) return 0;
  return std::min(groups, (size - sizeof(std::uint64_t)) / kBits + 1);
}

template <unsigned kBits>
std::uint8_t pack(const std::uint8_t* codes, std::size_t count, std::uint8_t lo,
                  std::byte* packed) noexcept {
  const std::size_t groups = count / kGroup;
  const std::size_t full = full_register_groups<kBits>(groups, groups * kBits);
  const std::uint64_t eight_lo = lo * kOnes;
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < groups; ++i, codes += kGroup, packed += kBits) {
    const std::uint64_t symbols = subtract_bytes(load_codes(codes), eight_lo);
    const std::uint64_t value = close_gaps<kBits>(symbols);
    seen |= symbols;
    if (i < full) [[likely]] {
      store_le(packed, value);
    } else {
      std::memcpy(packed, &value, kBits);
    }
  }
  for (unsigned half = 32; half >= 8; half /= 2) seen |= seen >> half;
  const std::uint8_t rest = pack_few(codes, count % kGroup, kBits, lo, packed);
  return static_cast<std::uint8_t>(seen | rest);
}

template <unsigned kBits>
void unpack(const std::byte* packed, std::size_t readable, std::uint8_t lo, std::uint8_t* codes,
            std::size_t count) noexcept {
  const std::size_t groups = count / kGroup;
  const std::size_t full = full_register_groups<kBits>(groups, readable);
  const std::uint64_t eight_lo = lo * kOnes;
  for (std::size_t i = 0; i < groups; ++i, packed += kBits, codes += kGroup) {
    std::uint64_t value = 0;
    if (i < full) [[likely]] {
      value = load_le<std::uint64_t>(packed);
    } else {
      std::memcpy(&value, packed, kBits);
    }
    store_codes(codes, add_bytes(open_gaps<kBits>(value), eight_lo));
  }
  unpack_few(packed, kBits, lo, codes, count % kGroup);
}

void dequantize_float32(const std::int8_t* codes, std::size_t count, float scale,
                        float* values) noexcept {
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(codes[i]) * scale;
}

constexpr std::uint32_t kNotSign = 0x7FFFFFFF;
constexpr std::uint32_t kInfinity = 0x7F800000;

// To nearest even: adds just under half a unit of what remains, and the rest if that is odd.
std::uint16_t round_to_bfloat16(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16 & 0x8000) | 0x7FC0;
  return static_cast<std::uint16_t>((bits & kNotSign) > kInfinity ? quiet_nan : rounded);
}

void dequantize_bfloat16(const std::int8_t* codes, std::size_t count, float scale,
                         std::uint16_t* values) noexcept {
  for (std::size_t i = 0; i < count; ++i) {
    values[i] = round_to_bfloat16(static_cast<float>(codes[i]) * scale);
  }
}

}  // namespace

const Kernels kScalar = {
    {pack<1>, pack<2>, pack<3>, pack<4>, pack<5>, pack<6>, pack<7>, pack<8>},
    {unpack<1>, unpack<2>, unpack<3>, unpack<4>, unpack<5>, unpack<6>, unpack<7>, unpack<8>},
    dequantize_float32,
    dequantize_float32,
    dequantize_bfloat16,
};

}  // namespace flyweight::bitpack::detail
