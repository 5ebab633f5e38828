#include "gptq/gptq.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <system_error>
#include <thread>
#include <vector>

#include "common/checked.hpp"
#include "common/cpu_dispatch.hpp"
#include "gptq/gptq_kernels.hpp"

namespace flyweight::gptq {
namespace {

// Multiplications that are worth a thread of their own: about a tenth of a millisecond.
constexpr std::size_t kWorkOfThread = std::size_t{1} << 22;

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

// --- sizes, in floats ---------------------------------------------------------------------------

constexpr std::size_t kAlignedFloats = detail::kAlignment / sizeof(float);

std::size_t divide_up(std::size_t a, std::size_t b) { return a / b + (a % b != 0 ? 1 : 0); }

// Panel p has (p + 1) * panel_cols rows of panel_cols floats.
std::size_t packed_factor_floats(std::size_t cols, const detail::Kernels& set) {
  const std::size_t panels = divide_up(cols, set.panel_cols);
  const std::size_t rows = checked_mul(panels, checked_add(panels, 1)) / 2;
  const std::size_t floats = checked_mul(rows, set.panel_cols * set.panel_cols);
  return checked_mul(divide_up(floats, kAlignedFloats), kAlignedFloats);
}

std::size_t tile_floats(Shape shape, const detail::Kernels& set) {
  const std::size_t padded = checked_mul(divide_up(shape.cols, set.panel_cols), set.panel_cols);
  const std::size_t floats =
      checked_mul(checked_mul(checked_add(padded, shape.groups), 2), set.tile_rows);
  return checked_mul(divide_up(floats, kAlignedFloats), kAlignedFloats);
}

struct Plan {
  std::size_t workers;
  std::size_t tiles;  // per pass over U
  std::size_t passes;
};

Plan plan_of(Shape shape, std::size_t threads, const detail::Kernels& set) {
  const std::size_t all = divide_up(shape.rows, set.tile_rows);
  const double work = static_cast<double>(shape.rows) * static_cast<double>(shape.cols) *
                      static_cast<double>(shape.cols) / 2;
  const double worth = 1 + work / static_cast<double>(kWorkOfThread);
  const std::size_t useful =
      worth < static_cast<double>(all) ? static_cast<std::size_t>(worth) : all;
  const std::size_t workers = std::max<std::size_t>(1, std::min(threads, useful));
  const std::size_t tiles = std::clamp<std::size_t>(all / workers, 1, detail::kMaxTiles);
  return {workers, tiles, divide_up(all, tiles)};
}

// --- the work -----------------------------------------------------------------------------------

// A few rows of U at a time: what is read stays in the cache until all panels have their part.
void pack_factor(const float* factor, std::size_t cols, std::size_t panel_cols, float* packed) {
  constexpr std::size_t kRows = 32;
  for (std::size_t top = 0; top < cols; top += kRows) {
    float* panel = packed;
    for (std::size_t first = 0; first < cols; first += panel_cols) {
      const std::size_t rows = first + panel_cols;
      const std::size_t width = std::min(panel_cols, cols - first);
      for (std::size_t j = top; j < std::min(top + kRows, rows); ++j) {
        float* const to = panel + j * panel_cols;
        const float* const from = factor + j * cols + first;
        for (std::size_t c = 0; c < panel_cols; ++c) to[c] = j < cols && c < width ? from[c] : 0.0f;
      }
      panel += rows * panel_cols;
    }
  }
}

// Workers take passes until none is left; where no further thread can be had, fewer do it all.
void run_passes(const detail::Problem& problem, const detail::Kernels& set, Plan plan,
                float* scratch) {
  std::atomic<std::size_t> next{0};
  const std::size_t all = divide_up(problem.rows, set.tile_rows);
  const auto work = [&](std::size_t worker) noexcept {
    float* const own = scratch + worker * plan.tiles * problem.tile_floats;
    for (std::size_t pass = next++; pass < plan.passes; pass = next++) {
      const std::size_t first = pass * plan.tiles;
      set.quantize(problem, first * set.tile_rows, std::min(plan.tiles, all - first), own);
    }
  };
  std::vector<std::jthread> others;
  others.reserve(plan.workers - 1);
  try {
    for (std::size_t worker = 1; worker < plan.workers; ++worker) others.emplace_back(work, worker);
  } catch (const std::system_error&) {
  }
  work(0);
}

float* aligned(std::span<float> scratch) {
  const auto address = reinterpret_cast<std::uintptr_t>(scratch.data());
  const std::uintptr_t past = address % detail::kAlignment;
  return scratch.data() + (past == 0 ? 0 : (detail::kAlignment - past) / sizeof(float));
}

// --- checks -------------------------------------------------------------------------------------

void check_size(const char* name, std::size_t got, std::size_t rows, std::size_t cols) {
  if (got != checked_mul(rows, cols)) {
    fail<InvalidArgument>("gptq: ", name, " has ", got, " entries, expected ", rows, " x ", cols);
  }
}

// Exponent of infinities and NaNs.
constexpr std::uint32_t kInfinity = 0x7f800000;

void check_finite(const char* name, std::span<const float> values, std::size_t cols) {
  std::uint32_t worst = 0;  // integers, which compilers put into vectors
  for (const float value : values) {
    worst = std::max(worst, std::bit_cast<std::uint32_t>(value) & kInfinity);
  }
  if (worst != kInfinity) return;
  const auto bad = std::ranges::find_if_not(values, [](float x) { return std::isfinite(x); });
  const auto at = static_cast<std::size_t>(bad - values.begin());
  fail<InvalidArgument>("gptq: ", name, " has ", *bad, " at row ", at / cols, ", column ",
                        at % cols);
}

void check_diagonal(std::span<const float> factor, std::size_t cols) {
  for (std::size_t j = 0; j < cols; ++j) {
    const float value = factor[j * cols + j];
    if (!(value > 0.0f)) {
      fail<InvalidArgument>("gptq: inverse_factor has ", value, " on its diagonal at column ", j,
                            ", expected a positive number");
    }
  }
}

void check_groups(std::span<const std::int32_t> column_groups, Shape shape) {
  check_size("column_groups", column_groups.size(), 1, shape.cols);
  for (std::size_t j = 0; j < shape.cols; ++j) {
    if (column_groups[j] < 0 || static_cast<std::size_t>(column_groups[j]) >= shape.groups) {
      fail<InvalidArgument>("gptq: column_groups has ", column_groups[j], " at column ", j,
                            ", expected 0 to ", shape.groups, " - 1");
    }
  }
}

void check_params(Params params) {
  if (params.lo < -128 || params.hi > 127 || params.lo > params.hi) {
    fail<InvalidArgument>("gptq: got lo=", params.lo, ", hi=", params.hi,
                          ", expected -128 <= lo <= hi <= 127");
  }
  if (params.block_cols == 0) fail<InvalidArgument>("gptq: got block_cols=0, expected 1 or more");
}

}  // namespace

std::size_t scratch_size(Shape shape, std::size_t threads) {
  const detail::Kernels& set = kernels();
  const Plan plan = plan_of(shape, threads, set);
  const std::size_t tiles =
      checked_mul(checked_mul(plan.workers, plan.tiles), tile_floats(shape, set));
  return checked_add(checked_add(packed_factor_floats(shape.cols, set), tiles), kAlignedFloats);
}

void quantize(const Inputs& in, Shape shape, Params params, std::size_t threads,
              std::span<float> scratch, std::span<std::int8_t> codes) {
  check_params(params);
  if (threads == 0) fail<InvalidArgument>("gptq: got threads=0, expected 1 or more");
  check_size("weights", in.weights.size(), shape.rows, shape.cols);
  check_size("inverse_factor", in.inverse_factor.size(), shape.cols, shape.cols);
  check_size("scales", in.scales.size(), shape.rows, shape.groups);
  check_size("codes", codes.size(), shape.rows, shape.cols);
  if (in.column_groups) {
    check_groups(*in.column_groups, shape);
  } else if (shape.groups != 1) {
    fail<InvalidArgument>("gptq: ", shape.groups, " scales per row need column_groups");
  }
  check_finite("weights", in.weights, shape.cols);
  check_finite("inverse_factor", in.inverse_factor, shape.cols);
  check_finite("scales", in.scales, shape.groups);
  if (in.zero_points) {
    check_size("zero_points", in.zero_points->size(), shape.rows, shape.groups);
    check_finite("zero_points", *in.zero_points, shape.groups);
  }
  check_diagonal(in.inverse_factor, shape.cols);
  require_room(scratch_size(shape, threads), scratch.size(), "gptq scratch");
  if (codes.empty()) return;
  const detail::Kernels& set = kernels();
  float* const packed = aligned(scratch);
  pack_factor(in.inverse_factor.data(), shape.cols, set.panel_cols, packed);
  const detail::Problem problem{
      .weights = in.weights.data(),
      .packed_factor = packed,
      .scales = in.scales.data(),
      .zero_points = in.zero_points ? in.zero_points->data() : nullptr,
      .column_groups = in.column_groups ? in.column_groups->data() : nullptr,
      .rows = shape.rows,
      .cols = shape.cols,
      .groups = shape.groups,
      .block_cols = std::min(params.block_cols, shape.cols),
      .tile_floats = tile_floats(shape, set),
      .lo = static_cast<float>(params.lo),
      .hi = static_cast<float>(params.hi),
      .codes = codes.data()};
  run_passes(problem, set, plan_of(shape, threads, set),
             packed + packed_factor_floats(shape.cols, set));
}

}  // namespace flyweight::gptq
