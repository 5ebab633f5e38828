#include "bitpack/bitpack.hpp"

#include <algorithm>
#include <cmath>
#ifdef FLYWEIGHT_X86
#include <xmmintrin.h>
#endif

#include "bitpack/bitpack_kernels.hpp"
#include "common/checked.hpp"
#include "common/cpu_dispatch.hpp"

namespace flyweight::bitpack {
namespace {

using detail::kGroup;

// Codes go through a buffer of this many between unpacking and scaling, so rows may start anywhere
// in a byte. Whole groups, small beside L1, and few enough that stores of values never pause long.
constexpr std::size_t kBlock = 512;
static_assert(kBlock % kGroup == 0);

// From this size on values leave past the caches. They would not stay in them for long, and a line
// written in full need not be read first: 1.1 to 1.6 times as fast for 16 and 90 MB on Zen 3, where
// 2 MB and less lose.
constexpr std::size_t kStreamBytes = std::size_t{16} << 20;

const detail::Kernels& kernels() {
#ifdef FLYWEIGHT_X86
  switch (cpu_tier()) {
    case CpuTier::kAvx512:
      return detail::kAvx512;
    case CpuTier::kAvx2:
      return detail::kAvx2;
    case CpuTier::kScalar:
      break;
  }
#endif
  return detail::kScalar;
}

void check_bits(unsigned bits) {
  if (bits < kMinBits || bits > kMaxBits) {
    fail<InvalidArgument>("bitpack: got bits=", bits, ", expected 1 to 8");
  }
}

// Packs, and says whether everything fitted.
bool pack(const std::uint8_t* codes, std::size_t count, unsigned bits, std::uint8_t lo,
          std::span<std::byte> packed) {
  require_room(packed_size(count, bits), packed.size(), "bitpack");
  const std::uint8_t seen = kernels().pack[bits - 1](codes, count, lo, packed.data());
  return seen >> bits == 0;
}

void unpack(std::span<const std::byte> packed, unsigned bits, std::uint8_t lo, std::uint8_t* codes,
            std::size_t count) {
  check_packed(packed, count, bits);
  kernels().unpack[bits - 1](packed.data(), packed.size(), lo, codes, count);
}

void fence_stores() {
#ifdef FLYWEIGHT_X86
  _mm_sfence();
#endif
}

// Scales runs of codes, in order, into one array of values.
class Scaler {
 public:
  Scaler(const detail::Kernels& set, std::span<const float> values)
      : set_(set),
        is_streaming_(values.size_bytes() >= kStreamBytes),
        float32_(is_streaming_ ? set.stream_float32 : set.dequantize_float32) {}
  Scaler(const detail::Kernels& set, std::span<const std::uint16_t> /*values*/)
      : set_(set), is_streaming_(false), float32_(set.dequantize_float32) {}
  ~Scaler() {
    if (is_streaming_) fence_stores();
  }
  Scaler(const Scaler&) = delete;
  Scaler& operator=(const Scaler&) = delete;

  void scale(std::span<const std::int8_t> codes, float scale, float* values) const {
    float32_(codes.data(), codes.size(), scale, values);
  }
  void scale(std::span<const std::int8_t> codes, float scale, std::uint16_t* values) const {
    const detail::Kernels& able = std::isfinite(scale) ? set_ : detail::kScalar;
    able.dequantize_bfloat16(codes.data(), codes.size(), scale, values);
  }

 private:
  const detail::Kernels& set_;
  bool is_streaming_;
  detail::Float32Kernel float32_;
};

void check_scales(std::size_t got, MatrixShape shape) {
  const std::size_t expected = checked_mul(shape.rows, scale_groups(shape));
  if (got != expected) {
    fail<InvalidArgument>("bitpack: got ", got, " scales, expected ", shape.rows, " rows of ",
                          scale_groups(shape));
  }
}

template <class Value>
void unpack_and_scale(std::span<const std::byte> packed, std::span<const float> scales,
                      CodeRange range, MatrixShape shape, std::span<Value> values) {
  check_range(range);
  check_scales(scales.size(), shape);
  if (values.size() != checked_mul(shape.rows, shape.cols)) {
    fail<InvalidArgument>("bitpack: got room for ", values.size(), " values, expected ", shape.rows,
                          " rows of ", shape.cols);
  }
  check_packed(packed, values.size(), range.bits);

  const detail::Kernels& set = kernels();
  const Scaler scaler(set, values);
  const auto lo = static_cast<std::uint8_t>(range.lo);
  const std::size_t group_size = shape.group_size == 0 ? shape.cols : shape.group_size;
  auto scale = scales.begin();
  std::size_t left_in_group = std::min(group_size, shape.cols);
  std::size_t left_in_row = shape.cols;
  std::int8_t buffer[kBlock];
  while (!values.empty()) {
    std::span<const std::int8_t> codes(buffer, std::min(kBlock, values.size()));
    set.unpack[range.bits - 1](packed.data(), packed.size(), lo,
                               reinterpret_cast<std::uint8_t*>(buffer), codes.size());
    packed = packed.subspan(std::min(packed.size(), kBlock / kGroup * range.bits));
    while (!codes.empty()) {
      if (left_in_group == 0) {
        left_in_row = left_in_row == 0 ? shape.cols : left_in_row;
        left_in_group = std::min(group_size, left_in_row);
        ++scale;
      }
      const std::size_t run = std::min(codes.size(), left_in_group);
      scaler.scale(codes.first(run), *scale, values.data());
      codes = codes.subspan(run);
      values = values.subspan(run);
      left_in_group -= run;
      left_in_row -= run;
    }
  }
}

}  // namespace

std::size_t packed_size(std::size_t count, unsigned bits) {
  check_bits(bits);
  const std::size_t groups = checked_mul(count / kGroup, bits);
  return checked_add(groups, (count % kGroup * bits + 7) / 8);
}

// Because the whole range fits into int8, a code outside it stays outside modulo 256, which is all
// that kernels look at: code - lo is in [-128 - lo, 127 - lo] and 127 - lo >= 2^bits - 1, so what
// is negative wraps to at least 256 - 128 - lo >= 2^bits.
void check_range(CodeRange range) {
  check_bits(range.bits);
  const int hi = range.lo + (1 << range.bits) - 1;
  if (range.lo < -128 || range.lo > 127 || hi > 127) {
    fail<InvalidArgument>("bitpack: got lo=", range.lo, " with bits=", range.bits,
                          ", expected -128 to ", 128 - (1 << range.bits),
                          " so that every code is an int8");
  }
}

void pack_bits(std::span<const std::uint8_t> symbols, unsigned bits, std::span<std::byte> packed) {
  check_bits(bits);
  if (pack(symbols.data(), symbols.size(), bits, 0, packed)) return;
  const auto bad = std::ranges::find_if(symbols, [&](std::uint8_t s) { return s >> bits != 0; });
  fail<InvalidArgument>("bitpack: symbol ", unsigned{*bad}, " at position ", bad - symbols.begin(),
                        " does not fit into ", bits, " bits");
}

void unpack_bits(std::span<const std::byte> packed, unsigned bits,
                 std::span<std::uint8_t> symbols) {
  unpack(packed, bits, 0, symbols.data(), symbols.size());
}

void pack_codes(std::span<const std::int8_t> codes, CodeRange range, std::span<std::byte> packed) {
  check_range(range);
  const auto bytes = reinterpret_cast<const std::uint8_t*>(codes.data());
  if (pack(bytes, codes.size(), range.bits, static_cast<std::uint8_t>(range.lo), packed)) return;
  const int hi = range.lo + (1 << range.bits) - 1;
  const auto bad = std::ranges::find_if(codes, [&](int c) { return c < range.lo || c > hi; });
  fail<InvalidArgument>("bitpack: code ", int{*bad}, " at position ", bad - codes.begin(),
                        " is outside ", range.lo, " to ", hi, ", the codes of lo=", range.lo,
                        " and ", range.bits, " bits");
}

void unpack_codes(std::span<const std::byte> packed, CodeRange range,
                  std::span<std::int8_t> codes) {
  check_range(range);
  const auto bytes = reinterpret_cast<std::uint8_t*>(codes.data());
  unpack(packed, range.bits, static_cast<std::uint8_t>(range.lo), bytes, codes.size());
}

std::size_t scale_groups(MatrixShape shape) {
  if (shape.group_size == 0) return shape.cols == 0 ? 0 : 1;
  return shape.cols / shape.group_size + (shape.cols % shape.group_size == 0 ? 0 : 1);
}

void unpack_dequantize(std::span<const std::byte> packed, std::span<const float> scales,
                       CodeRange range, MatrixShape shape, std::span<float> values) {
  unpack_and_scale(packed, scales, range, shape, values);
}

void unpack_dequantize(std::span<const std::byte> packed, std::span<const float> scales,
                       CodeRange range, MatrixShape shape, std::span<std::uint16_t> values) {
  unpack_and_scale(packed, scales, range, shape, values);
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
