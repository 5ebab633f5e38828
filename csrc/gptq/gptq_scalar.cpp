#include <cmath>

#include "gptq/gptq_tiles.hpp"

namespace flyweight::gptq::detail {
namespace {

// A few lanes in plain C++, which the compiler may put into the vectors that every machine of this
// architecture has. Where those have no fused multiply-add, std::fma is a slow call.
struct PlainLanes {
  static constexpr std::size_t kLanes = 4;
  static constexpr std::size_t kPanelCols = 4;
  struct Vec {
    float at[kLanes];
  };

  template <class Operation>
  static Vec each(Operation operation) noexcept {
    Vec result;
    for (std::size_t i = 0; i < kLanes; ++i) result.at[i] = operation(i);
    return result;
  }

  static Vec load(const float* from) noexcept {
    return each([&](std::size_t i) { return from[i]; });
  }
  static void store(float* to, const Vec& x) noexcept {
    for (std::size_t i = 0; i < kLanes; ++i) to[i] = x.at[i];
  }
  static Vec broadcast(float x) noexcept {
    return each([&](std::size_t) { return x; });
  }
  static Vec add(const Vec& a, const Vec& b) noexcept {
    return each([&](std::size_t i) { return a.at[i] + b.at[i]; });
  }
  static Vec subtract(const Vec& a, const Vec& b) noexcept {
    return each([&](std::size_t i) { return a.at[i] - b.at[i]; });
  }
  static Vec divide(const Vec& a, const Vec& b) noexcept {
    return each([&](std::size_t i) { return a.at[i] / b.at[i]; });
  }
  static Vec subtract_product(const Vec& from, const Vec& a, const Vec& b) noexcept {
    return each([&](std::size_t i) { return std::fma(-a.at[i], b.at[i], from.at[i]); });
  }
  static Vec larger_or_second(const Vec& a, const Vec& b) noexcept {
    return each([&](std::size_t i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Vec smaller_or_second(const Vec& a, const Vec& b) noexcept {
    return each([&](std::size_t i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; });
  }
  static Vec zero_or(const Vec& scale, const Vec& zero, const Vec& otherwise) noexcept {
    return each([&](std::size_t i) { return scale.at[i] == 0.0f ? zero.at[i] : otherwise.at[i]; });
  }
};

}  // namespace

const Kernels kScalar = {PlainLanes::kPanelCols, Tile<PlainLanes>::kRows,
                         quantize_tiles<PlainLanes>};

}  // namespace flyweight::gptq::detail
