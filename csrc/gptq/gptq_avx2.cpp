#if !defined(__AVX2__) || !defined(__FMA__)
#error "this file needs the flags of its instruction set, see CMakeLists.txt"
#endif
#include <immintrin.h>

#include "gptq/gptq_tiles.hpp"

namespace flyweight::gptq::detail {
namespace {

// 12 of the 16 registers hold sums, two hold errors and one an entry of U: enough sums to hide the
// latency of 4 cycles of two fused multiply-adds a cycle.
struct Lanes8 {
  static constexpr std::size_t kLanes = 8;
  static constexpr std::size_t kPanelCols = 6;
  using Vec = __m256;

  static Vec load(const float* from) noexcept { return _mm256_load_ps(from); }
  static void store(float* to, Vec x) noexcept { _mm256_store_ps(to, x); }
  static Vec broadcast(float x) noexcept { return _mm256_set1_ps(x); }
  static Vec add(Vec a, Vec b) noexcept { return _mm256_add_ps(a, b); }
  static Vec subtract(Vec a, Vec b) noexcept { return _mm256_sub_ps(a, b); }
  static Vec divide(Vec a, Vec b) noexcept { return _mm256_div_ps(a, b); }
  static Vec subtract_product(Vec from, Vec a, Vec b) noexcept {
    return _mm256_fnmadd_ps(a, b, from);
  }
  static Vec larger_or_second(Vec a, Vec b) noexcept { return _mm256_max_ps(a, b); }
  static Vec smaller_or_second(Vec a, Vec b) noexcept { return _mm256_min_ps(a, b); }
  static Vec zero_or(Vec scale, Vec zero, Vec otherwise) noexcept {
    const Vec is_zero = _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_EQ_OQ);
    return _mm256_blendv_ps(otherwise, zero, is_zero);
  }
};

}  // namespace

const Kernels kAvx2 = {Lanes8::kPanelCols, Tile<Lanes8>::kRows, quantize_tiles<Lanes8>};

}  // namespace flyweight::gptq::detail
