#include <algorithm>

#include "bitpack/bitpack.hpp"
#include "common/bytes.hpp"
#include "common/checked.hpp"

namespace flyweight::bitpack {
namespace {

// Layout: symbol i is bits [i * bits, (i + 1) * bits) of the stream, where bit k of the stream is
// bit k % 8 of byte k / 8 (least significant first). Unused high bits of the last byte are zero.
// Eight symbols take exactly `bits` bytes, so every group of eight starts on a byte.
constexpr std::size_t kGroup = 8;

void check_bits(unsigned bits) {
  if (bits < kMinBits || bits > kMaxBits) {
    fail<InvalidArgument>("bitpack: got bits=", bits, ", expected 1 to 8");
  }
}

// Plain version, for fewer than eight symbols: one symbol after the other into an accumulator.
void pack_few(std::span<const std::uint8_t> symbols, unsigned bits, std::byte* packed) noexcept {
  std::uint64_t accumulator = 0;
  unsigned filled = 0;
  for (const std::uint8_t symbol : symbols) {
    accumulator |= static_cast<std::uint64_t>(symbol) << filled;
    filled += bits;
  }
  for (; filled > 0; filled -= std::min(filled, 8u), accumulator >>= 8) {
    *packed++ = static_cast<std::byte>(accumulator);
  }
}

void unpack_few(const std::byte* packed, unsigned bits, std::span<std::uint8_t> symbols) noexcept {
  const std::size_t size = (symbols.size() * bits + 7) / 8;
  std::uint64_t accumulator = 0;
  for (std::size_t i = 0; i < size; ++i) {
    accumulator |= std::to_integer<std::uint64_t>(packed[i]) << (8 * i);
  }
  for (std::uint8_t& symbol : symbols) {
    symbol = static_cast<std::uint8_t>(accumulator & ((1u << bits) - 1));
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

std::uint64_t close_gaps(std::uint64_t x, unsigned bits) noexcept {
  x = (x & kEven8) | ((x >> 8 & kEven8) << bits);
  x = (x & kEven16) | ((x >> 16 & kEven16) << (2 * bits));
  x = (x & kEven32) | ((x >> 32) << (4 * bits));
  return x;
}

std::uint64_t open_gaps(std::uint64_t x, unsigned bits) noexcept {
  const std::uint64_t low4 = (std::uint64_t{1} << (4 * bits)) - 1;
  const std::uint64_t low2 = ((std::uint64_t{1} << (2 * bits)) - 1) * 0x0000000100000001;
  const std::uint64_t low1 = ((std::uint64_t{1} << bits) - 1) * 0x0001000100010001;
  x = (x & low4) | ((x >> (4 * bits) & low4) << 32);
  x = (x & low2) | ((x >> (2 * bits) & low2) << 16);
  x = (x & low1) | ((x >> bits & low1) << 8);
  return x;
}

std::uint64_t load_symbols(const std::uint8_t* symbols) noexcept {
  return load_le<std::uint64_t>(reinterpret_cast<const std::byte*>(symbols));
}

void store_symbols(std::uint8_t* symbols, std::uint64_t eight) noexcept {
  store_le(reinterpret_cast<std::byte*>(symbols), eight);
}

// A group's `bits` bytes move as a full register wherever the buffer goes on that far: what a store
// writes too much the next group overwrites, and what a load reads too much open_gaps masks away.
void store_group(std::span<std::byte> to, std::uint64_t value, unsigned bits) noexcept {
  if (to.size() >= sizeof value) {
    store_le(to.data(), value);
  } else {
    std::memcpy(to.data(), &value, bits);
  }
}

std::uint64_t load_group(std::span<const std::byte> from, unsigned bits) noexcept {
  if (from.size() >= sizeof(std::uint64_t)) return load_le<std::uint64_t>(from.data());
  std::uint64_t value = 0;
  std::memcpy(&value, from.data(), bits);
  return value;
}

}  // namespace

namespace detail {

void pack_bits(std::span<const std::uint8_t> symbols, unsigned bits,
               std::span<std::byte> packed) noexcept {
  for (; symbols.size() >= kGroup; symbols = symbols.subspan(kGroup)) {
    store_group(packed, close_gaps(load_symbols(symbols.data()), bits), bits);
    packed = packed.subspan(bits);
  }
  pack_few(symbols, bits, packed.data());
}

void unpack_bits(std::span<const std::byte> packed, unsigned bits,
                 std::span<std::uint8_t> symbols) noexcept {
  for (; symbols.size() >= kGroup; symbols = symbols.subspan(kGroup)) {
    store_symbols(symbols.data(), open_gaps(load_group(packed, bits), bits));
    packed = packed.subspan(bits);
  }
  unpack_few(packed.data(), bits, symbols);
}

}  // namespace detail

std::size_t packed_size(std::size_t count, unsigned bits) {
  check_bits(bits);
  const std::size_t groups = checked_mul(count / kGroup, bits);
  return checked_add(groups, (count % kGroup * bits + 7) / 8);
}

void pack_bits(std::span<const std::uint8_t> symbols, unsigned bits, std::span<std::byte> packed) {
  const std::size_t size = packed_size(symbols.size(), bits);
  require_room(size, packed.size(), "bitpack");
  std::uint8_t seen = 0;
  for (const std::uint8_t symbol : symbols) seen |= symbol;
  if (seen >> bits != 0) {
    const auto bad = std::ranges::find_if(symbols, [&](std::uint8_t s) { return s >> bits != 0; });
    fail<InvalidArgument>("bitpack: symbol ", unsigned{*bad}, " at position ",
                          bad - symbols.begin(), " does not fit into ", bits, " bits");
  }
  detail::pack_bits(symbols, bits, packed.first(size));
}

void unpack_bits(std::span<const std::byte> packed, unsigned bits,
                 std::span<std::uint8_t> symbols) {
  check_packed(packed, symbols.size(), bits);
  detail::unpack_bits(packed, bits, symbols);
}

void check_packed(std::span<const std::byte> packed, std::size_t count, unsigned bits) {
  const std::size_t expected = packed_size(count, bits);
  if (packed.size() != expected) {
    fail<CorruptStream>("bitpack: ", count, " symbols of ", bits, " bits take ", expected,
                        " bytes, got ", packed.size());
  }
  const std::size_t used = count % kGroup * bits % 8;
  if (used != 0 && std::to_integer<unsigned>(packed.back()) >> used != 0) {
    fail<CorruptStream>("bitpack: padding bits of the last byte, ", expected - 1, ", are not zero");
  }
}

}  // namespace flyweight::bitpack
