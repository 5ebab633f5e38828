#include <algorithm>
#include <cmath>

#include "common/checked.hpp"
#include "gptq/gptq.hpp"

namespace flyweight::gptq {
namespace {

// Rows worked on together: each pass over U, which is far larger than a cache, serves all of them.
constexpr std::size_t kRowsPerPass = 8;
// Columns of the trailing update done together: block_cols of these rows of U stay in the cache.
constexpr std::size_t kPanelCols = 64;

// Rounds a value within +-2^22 to the nearest integer, ties to even, by pushing its fraction out of
// the significand. Unlike std::rint it needs no SSE4.1 to be fast.
float round_half_even(float x) noexcept {
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

// Rounding keeps the order of its inputs and leaves lo and hi alone, so clipping may come first.
// The comparisons also send a NaN, which overflowing updates may produce, to lo.
float nearest_code(float x, float lo, float hi) noexcept {
  const float raised = x > lo ? x : lo;
  return round_half_even(raised < hi ? raised : hi);
}

// target -= sum of errors[j] * U[j, ...], four rows of U at a time but in the order of j.
void subtract_rows(std::span<const float> errors, const float* factor, std::size_t stride,
                   std::span<float> target) noexcept {
  float* const w = target.data();
  std::size_t j = 0;
  for (; j + 4 <= errors.size(); j += 4) {
    const float e0 = errors[j], e1 = errors[j + 1], e2 = errors[j + 2], e3 = errors[j + 3];
    const float* const u0 = factor + j * stride;
    const float* const u1 = u0 + stride;
    const float* const u2 = u1 + stride;
    const float* const u3 = u2 + stride;
    for (std::size_t k = 0; k < target.size(); ++k) {
      w[k] = (((w[k] - e0 * u0[k]) - e1 * u1[k]) - e2 * u2[k]) - e3 * u3[k];
    }
  }
  for (; j < errors.size(); ++j) {
    const float e = errors[j];
    const float* const u = factor + j * stride;
    for (std::size_t k = 0; k < target.size(); ++k) w[k] -= e * u[k];
  }
}

struct Block {
  std::size_t first;
  std::size_t end;
};

// Codes the columns of a block of one row, keeps its weights up to date and records the errors.
void code_block(const Inputs& in, Shape shape, Params params, std::size_t row, Block block,
                std::span<float> weights, float* errors, std::int8_t* codes) noexcept {
  const float* const scales = &in.scales[row * shape.groups];
  const float* const zeros = in.zero_points ? &(*in.zero_points)[row * shape.groups] : nullptr;
  const auto lo = static_cast<float>(params.lo);
  const auto hi = static_cast<float>(params.hi);
  for (std::size_t j = block.first; j < block.end; ++j) {
    const auto group = in.column_groups ? static_cast<std::size_t>((*in.column_groups)[j]) : 0;
    const float scale = scales[group];
    const float zero = zeros == nullptr ? 0.0f : zeros[group];
    const float level = scale == 0.0f ? zero : weights[j] / scale + zero;
    const float code = nearest_code(level, lo, hi);
    codes[j] = static_cast<std::int8_t>(code);
    const float* const u = &in.inverse_factor[j * shape.cols];
    const float error = (weights[j] - scale * (code - zero)) / u[j];
    errors[j - block.first] = error;
    for (std::size_t k = j + 1; k < block.end; ++k) weights[k] -= error * u[k];
  }
}

// --- checks -------------------------------------------------------------------------------------

void check_size(const char* name, std::size_t got, std::size_t rows, std::size_t cols) {
  if (got != checked_mul(rows, cols)) {
    fail<InvalidArgument>("gptq: ", name, " has ", got, " entries, expected ", rows, " x ", cols);
  }
}

void check_finite(const char* name, std::span<const float> values, std::size_t cols) {
  bool all = true;
  for (const float value : values) all &= std::isfinite(value);
  if (all) return;
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

namespace detail {

void quantize(const Inputs& in, Shape shape, Params params, std::span<float> scratch,
              std::span<std::int8_t> codes) noexcept {
  const std::size_t cols = shape.cols;
  const std::size_t width = std::min(params.block_cols, cols);
  const std::span<float> work = scratch.first(kRowsPerPass * cols);
  float* const errors = scratch.data() + work.size();
  for (std::size_t top = 0; top < shape.rows; top += kRowsPerPass) {
    const std::size_t height = std::min(kRowsPerPass, shape.rows - top);
    std::ranges::copy(in.weights.subspan(top * cols, height * cols), work.begin());
    for (Block block{0, 0}; block.first < cols; block.first = block.end) {
      block.end = block.first + std::min(width, cols - block.first);
      const std::size_t block_cols = block.end - block.first;
      for (std::size_t r = 0; r < height; ++r) {
        code_block(in, shape, params, top + r, block, work.subspan(r * cols, cols),
                   errors + r * width, &codes[(top + r) * cols]);
      }
      for (std::size_t k = block.end; k < cols; k += kPanelCols) {
        const std::size_t panel = std::min(kPanelCols, cols - k);
        const float* const factor = &in.inverse_factor[block.first * cols + k];
        for (std::size_t r = 0; r < height; ++r) {
          subtract_rows({errors + r * width, block_cols}, factor, cols,
                        work.subspan(r * cols + k, panel));
        }
      }
    }
  }
}

}  // namespace detail

std::size_t scratch_size(std::size_t cols, std::size_t block_cols) {
  return checked_mul(kRowsPerPass, checked_add(cols, std::min(cols, block_cols)));
}

void quantize(const Inputs& in, Shape shape, Params params, std::span<float> scratch,
              std::span<std::int8_t> codes) {
  check_params(params);
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
  require_room(scratch_size(shape.cols, params.block_cols), scratch.size(), "gptq scratch");
  if (!codes.empty()) detail::quantize(in, shape, params, scratch, codes);
}

}  // namespace flyweight::gptq
