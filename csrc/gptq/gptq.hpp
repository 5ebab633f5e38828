// GPTQ column updates for one weight matrix (Frantar et al. 2022, arXiv:2210.17323, algorithm 1).
//
// Columns are coded from left to right; the error of each is spread over the columns to its right
// by a row of U, where inverse(H) = U^T U and U is upper triangular:
//   code = clip(round_half_even(w_j / s + z), lo, hi)
//   err  = fma(-s, code - z, w_j) / U_jj
//   w_k  = fma(-err, U_jk, w_k)                        for every k > j
// Rows are independent of each other. Arithmetic is float32: the divisions are true divisions, and
// fma rounds once. Every w_k sees its updates in the order of j, so that neither the block width,
// the instruction set nor the number of threads changes a single bit of the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace flyweight::gptq {

struct Shape {
  std::size_t rows;
  std::size_t cols;
  std::size_t groups;  ///< scales per row
};

struct Params {
  int lo;                  ///< lowest code, at least -128
  int hi;                  ///< highest code, at most 127
  std::size_t block_cols;  ///< columns whose errors are spread together
};

/// Matrices are row-major.
struct Inputs {
  std::span<const float> weights;         ///< (rows, cols)
  std::span<const float> inverse_factor;  ///< (cols, cols), U; only j <= k is used
  std::span<const float> scales;          ///< (rows, groups)
  std::optional<std::span<const std::int32_t>> column_groups;  ///< (cols,); without: all group 0
  std::optional<std::span<const float>> zero_points;           ///< (rows, groups); without: all 0
};

/// Floats of scratch that `quantize` needs with the kernels of this thread's CPU tier.
std::size_t scratch_size(Shape shape, std::size_t threads);

/// Writes (rows, cols) codes. Up to `threads` threads, this one included, share the rows. Throws
/// InvalidArgument for sizes that do not fit together, no threads, a value that is not finite, a
/// diagonal entry of U that is not positive, or a group out of range.
void quantize(const Inputs& inputs, Shape shape, Params params, std::size_t threads,
              std::span<float> scratch, std::span<std::int8_t> codes);

}  // namespace flyweight::gptq
