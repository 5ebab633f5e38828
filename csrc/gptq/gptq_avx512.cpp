#ifndef __AVX512F__
#error "this file needs the flags of its instruction set, see CMakeLists.txt"
#endif
#include <immintrin.h>

#include "gptq/gptq_tiles.hpp"

namespace flyweight::gptq::detail {
namespace {

// 24 of the 32 registers hold sums.
struct Lanes16 {
  static constexpr std::size_t kLanes = 16;
  static constexpr std::size_t kPanelCols = 12;
  using Vec = __m512;

  static Vec load(const float* from) noexcept { return _mm512_load_ps(from); }
  static void store(float* to, Vec x) noexcept { _mm512_store_ps(to, x); }
  static Vec broadcast(float x) noexcept { return _mm512_set1_ps(x); }
  static Vec add(Vec a, Vec b) noexcept { return _mm512_add_ps(a, b); }
  static Vec subtract(Vec a, Vec b) noexcept { return _mm512_sub_ps(a, b); }
  static Vec divide(Vec a, Vec b) noexcept { return _mm512_div_ps(a, b); }
  static Vec subtract_product(Vec from, Vec a, Vec b) noexcept {
    return _mm512_fnmadd_ps(a, b, from);
  }
  static Vec larger_or_second(Vec a, Vec b) noexcept { return _mm512_max_ps(a, b); }
  static Vec smaller_or_second(Vec a, Vec b) noexcept { return _mm512_min_ps(a, b); }
  static Vec zero_or(Vec scale, Vec zero, Vec otherwise) noexcept {
    const __mmask16 is_zero = _mm512_cmp_ps_mask(scale, _mm512_setzero_ps(), _CMP_EQ_OQ);
    return _mm512_mask_blend_ps(is_zero, otherwise, zero);
  }
};

}  // namespace

const Kernels kAvx512 = {Lanes16::kPanelCols, Tile<Lanes16>::kRows, quantize_tiles<Lanes16>};

}  // namespace flyweight::gptq::detail
