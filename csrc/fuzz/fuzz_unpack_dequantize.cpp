// Any bytes as packed codes with any scales: refused, or codes that pack to the same bytes and
// values that are code times scale bit for bit, on every tier.
//
// Input: bits - 1 (3 bits of a u8), lo (u8), rows (u8), columns (u8), group size (u8), seed of the
// scales (u16), packed bytes. Where bit 3 of the first byte is set, they are cut or filled with
// zeros to the size that the shape asks for.
#include <bit>
#include <cmath>

#include "bitpack/bitpack.hpp"
#include "fuzz/fuzz_input.hpp"

using namespace flyweight;

namespace {

// Half of them ordinary, the others any bit pattern: infinities, NaNs, subnormal numbers.
std::vector<float> make_scales(std::size_t count, fuzz::Noise& noise) {
  std::vector<float> scales(count);
  for (float& scale : scales) {
    const std::uint32_t pattern = noise.next(1u << 16) << 16 | noise.next(1u << 16);
    const bool is_any = noise.next(2) == 1;
    scale = std::bit_cast<float>(is_any ? pattern : (pattern & 0x83FFFFFF) | 0x3C000000);
  }
  return scales;
}

// Bit patterns of the values, which compare even where they are NaNs.
template <class Value>
std::vector<std::uint32_t> dequantize(std::span<const std::byte> packed,
                                      std::span<const float> scales, bitpack::CodeRange range,
                                      bitpack::MatrixShape shape) {
  std::vector<Value> values(shape.rows * shape.cols);
  bitpack::unpack_dequantize(packed, scales, range, shape, values);
  std::vector<std::uint32_t> patterns;
  for (const Value value : values) {
    if constexpr (sizeof(Value) == 4) {
      patterns.push_back(std::bit_cast<std::uint32_t>(value));
    } else {
      patterns.push_back(value);
    }
  }
  return patterns;
}

void check_values(std::span<const std::int8_t> codes, std::span<const float> scales,
                  bitpack::MatrixShape shape, std::span<const std::uint32_t> patterns) {
  const std::size_t group = shape.group_size == 0 ? shape.cols : shape.group_size;
  const std::size_t groups = bitpack::scale_groups(shape);
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const float scale = scales[i / shape.cols * groups + i % shape.cols / group];
    const float expected = static_cast<float>(codes[i]) * scale;
    const auto value = std::bit_cast<float>(patterns[i]);
    fuzz::require(std::bit_cast<std::uint32_t>(expected) == patterns[i] ||
                      (std::isnan(expected) && std::isnan(value)),
                  "a value is not its code times its scale");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input(data, size);
  const unsigned head = input.u8();
  const unsigned bits = bitpack::kMinBits + (head & 7);
  const int lo = -128 + static_cast<int>(input.u8() % (257 - (1u << bits)));
  const bitpack::CodeRange range{bits, lo};
  const std::size_t rows = input.u8();
  const std::size_t cols = input.u8();
  const bitpack::MatrixShape shape{rows, cols, input.u8()};
  fuzz::Noise noise(input.u16());
  const std::vector<float> scales = make_scales(rows * bitpack::scale_groups(shape), noise);
  std::vector<std::byte> packed(input.rest_bytes().begin(), input.rest_bytes().end());
  if (head & 8) packed.resize(bitpack::packed_size(rows * cols, bits));

  const auto codes = fuzz::same_on_every_tier([&] {
    std::vector<std::int8_t> unpacked(rows * cols);
    bitpack::unpack_codes(packed, range, unpacked);
    return unpacked;
  });
  const auto values =
      fuzz::same_on_every_tier([&] { return dequantize<float>(packed, scales, range, shape); });
  const auto halves = fuzz::same_on_every_tier(
      [&] { return dequantize<std::uint16_t>(packed, scales, range, shape); });
  fuzz::require(codes.has_value() == values.has_value() && codes.has_value() == halves.has_value(),
                "the readers disagree");
  if (!codes) return 0;
  check_values(*codes, scales, shape, *values);
  const auto again = fuzz::same_on_every_tier([&] {
    std::vector<std::byte> room(packed.size());
    bitpack::pack_codes(*codes, range, room);
    return room;
  });
  fuzz::require(again == packed, "other bytes for the same codes");
  return 0;
}
