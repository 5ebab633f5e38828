// Any bytes as packed symbols: refused, or symbols that pack to the same bytes, on every tier.
//
// Input: bits - 1 (3 bits of a u8), count (u16), packed bytes. Where bit 3 of the first byte is
// set, the count is that of the most symbols that the bytes can hold.
#include "bitpack/bitpack.hpp"
#include "fuzz/fuzz_input.hpp"

using namespace flyweight;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const unsigned head = input.u8();
  const unsigned bits = bitpack::kMinBits + (head & 7);
  std::size_t count = input.u16();
  const auto packed = input.rest_bytes();
  if (head & 8) count = 8 * packed.size() / bits;
  const auto symbols = fuzz::same_on_every_tier([&] {
    std::vector<std::uint8_t> unpacked(count);
    bitpack::unpack_bits(packed, bits, unpacked);
    return unpacked;
  });
  const auto is_checked = fuzz::same_on_every_tier([&] {
    bitpack::check_packed(packed, count, bits);
    return true;
  });
  fuzz::require(symbols.has_value() == is_checked.has_value(), "check and reader disagree");
  if (!symbols) return 0;
  const auto again = fuzz::same_on_every_tier([&] {
    std::vector<std::byte> room(bitpack::packed_size(count, bits));
    bitpack::pack_bits(*symbols, bits, room);
    return room;
  });
  fuzz::require(again && std::ranges::equal(*again, packed), "other bytes for the same symbols");
  return 0;
}
