// What each instruction set implements. Declarations of plain types only: files with flags of their
// own include this.
//
// Layout: symbol i is bits [i * bits, (i + 1) * bits) of the stream, where bit k of the stream is
// bit k % 8 of byte k / 8 (least significant first). Unused high bits of the last byte are zero.
// Eight symbols take exactly `bits` bytes, so every group of eight starts on a byte.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flyweight::bitpack::detail {

/// Symbols per group, and how many widths there are.
inline constexpr std::size_t kGroup = 8;
inline constexpr std::size_t kWidths = 8;

/// Writes the packed size of `count` symbols to `packed`; symbol = code - lo, modulo 256. Returns
/// all symbols ored together: where that needs more than the width's bits, some symbol does not fit
/// and what was written means nothing.
using PackKernel = std::uint8_t (*)(const std::uint8_t* codes, std::size_t count, std::uint8_t lo,
                                    std::byte* packed) noexcept;

/// Inverse: code = symbol + lo, modulo 256. Reads nothing behind the first `readable` bytes, at
/// least the packed size; a kernel is fastest where more than that may be read.
using UnpackKernel = void (*)(const std::byte* packed, std::size_t readable, std::uint8_t lo,
                              std::uint8_t* codes, std::size_t count) noexcept;

/// value = float32(code) * scale; the result rounded once more for bfloat16. Except for kScalar's,
/// the latter want a finite scale.
using Float32Kernel = void (*)(const std::int8_t* codes, std::size_t count, float scale,
                               float* values) noexcept;
using Bfloat16Kernel = void (*)(const std::int8_t* codes, std::size_t count, float scale,
                                std::uint16_t* values) noexcept;

struct Kernels {
  PackKernel pack[kWidths];  ///< by width, 1 bit first
  UnpackKernel unpack[kWidths];
  Float32Kernel dequantize_float32;
  Float32Kernel stream_float32;  ///< the same past the caches; a store fence must follow the last
  Bfloat16Kernel dequantize_bfloat16;
};

extern const Kernels kScalar;
extern const Kernels kAvx2;    ///< exists on x86-64 only
extern const Kernels kAvx512;  ///< exists on x86-64 only

}  // namespace flyweight::bitpack::detail
