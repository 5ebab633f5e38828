// Any bytes as an ANS stream: refused, or symbols of the alphabet, and the same on every tier.
//
// Input: alphabet - 1 (u8), count (u16, below 2^15), stream.
#include "fuzz/fuzz_input.hpp"
#include "rans/ans.hpp"

using namespace flyweight;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const std::size_t alphabet = input.u8() + 1;
  const std::size_t count = input.u16() & 0x7FFF;
  const auto symbols = fuzz::same_on_every_tier([&] {
    std::vector<std::uint8_t> decoded(count);
    rans::ans_decode(input.rest_bytes(), alphabet, decoded);
    return decoded;
  });
  if (symbols) {
    fuzz::require(std::ranges::all_of(*symbols, [&](auto s) { return s < alphabet; }),
                  "a symbol is outside the alphabet");
  }
  return 0;
}
