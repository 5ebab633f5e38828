// Any bytes as states and words under several tables with classes: refused, or symbols and hidden
// words that encode to the very bytes that were read, and the same on every tier.
//
// Input: model (rans_model.hpp), stream.
#include "fuzz/rans_model.hpp"

using namespace flyweight;

namespace {

struct Decoded {
  std::vector<std::uint8_t> symbols;
  std::vector<std::uint16_t> hidden;
  std::size_t read = 0;

  bool operator==(const Decoded&) const = default;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const fuzz::RansModel made = fuzz::take_rans_model(input, false);
  const auto stream = input.rest_bytes();
  const auto decoded = fuzz::same_on_every_tier([&] {
    Decoded run{std::vector<std::uint8_t>(made.count),
                std::vector<std::uint16_t>(made.hidden.size())};
    run.read = rans::decode(stream, made.model(), made.params, run.hidden, run.symbols);
    return run;
  });
  if (!decoded) return 0;
  fuzz::require(decoded->read <= stream.size(), "read past the end");
  const auto again = fuzz::same_on_every_tier([&] {
    std::vector<std::byte> room(rans::encode_bound(made.count, made.params.ways));
    const std::size_t used =
        rans::encode(decoded->symbols, made.model(), made.params, decoded->hidden, room);
    return std::vector(room.end() - static_cast<std::ptrdiff_t>(used), room.end());
  });
  fuzz::require(again && std::ranges::equal(*again, stream.first(decoded->read)),
                "a second stream for the same symbols");
  return 0;
}
