// The kernel, once for all instruction sets. Each file that includes it names its vectors in a type
// of its own anonymous namespace, so that no instance of these templates is shared between files
// with different flags.
//
// `V` has kLanes, kPanelCols, Vec and the operations used below. A tile is two vectors of rows. The
// panels are worked on from left to right, and each looks back: its columns are loaded once, the
// errors of all columns before it are subtracted in registers, then its own columns are coded.
// Compared with spreading each error at once, weights move once for every `block_cols` updates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "gptq/gptq_kernels.hpp"

namespace flyweight::gptq::detail {

template <class V>
struct Tile {
  static constexpr std::size_t kRows = 2 * V::kLanes;

  float* weights;  // (padded cols, kRows): weights, and codes once a column is coded
  float* errors;   // (padded cols, kRows)
  float* scales;   // (groups, kRows)
  float* zeros;    // (groups, kRows)
};

template <class V>
struct Accumulator {
  typename V::Vec at[V::kPanelCols][2];
};

template <class V>
Accumulator<V> load_panel(const float* weights) noexcept {
  Accumulator<V> sum;
#pragma GCC unroll 16
  for (std::size_t c = 0; c < V::kPanelCols; ++c) {
    sum.at[c][0] = V::load(weights + 2 * c * V::kLanes);
    sum.at[c][1] = V::load(weights + (2 * c + 1) * V::kLanes);
  }
  return sum;
}

// weights[k] -= errors[j] * U[j, k] for `depth` columns j, one after the other.
template <class V>
void subtract_errors(const float* errors, const float* factor, std::size_t depth,
                     float* weights) noexcept {
  Accumulator<V> sum = load_panel<V>(weights);
  for (std::size_t j = 0; j < depth; ++j) {
    const typename V::Vec e0 = V::load(errors);
    const typename V::Vec e1 = V::load(errors + V::kLanes);
#pragma GCC unroll 16
    for (std::size_t c = 0; c < V::kPanelCols; ++c) {
      const typename V::Vec u = V::broadcast(factor[c]);
      sum.at[c][0] = V::subtract_product(sum.at[c][0], e0, u);
      sum.at[c][1] = V::subtract_product(sum.at[c][1], e1, u);
    }
    errors += Tile<V>::kRows;
    factor += V::kPanelCols;
  }
#pragma GCC unroll 16
  for (std::size_t c = 0; c < V::kPanelCols; ++c) {
    V::store(weights + 2 * c * V::kLanes, sum.at[c][0]);
    V::store(weights + (2 * c + 1) * V::kLanes, sum.at[c][1]);
  }
}

// The code nearest to w / scale + zero, ties to even. Rounding keeps the order of its inputs and
// leaves lo and hi alone, so clipping may come first; it sends a NaN, which overflowing updates may
// produce, to lo. Numbers within +-2^22 are rounded by pushing their fraction out of the
// significand.
template <class V>
typename V::Vec nearest_code(typename V::Vec weight, typename V::Vec scale, typename V::Vec zero,
                             const Problem& problem) noexcept {
  const auto level = V::zero_or(scale, zero, V::add(V::divide(weight, scale), zero));
  const auto raised = V::larger_or_second(level, V::broadcast(problem.lo));
  const auto inside = V::smaller_or_second(raised, V::broadcast(problem.hi));
  const auto shift = V::broadcast(0x1.8p23f);
  return V::subtract(V::add(inside, shift), shift);
}

// Codes the columns of a panel that has seen the errors of all before it. `factor` are the rows of
// U, in this panel, that belong to its own columns.
template <class V>
void code_panel(const Problem& problem, const Tile<V>& tile, std::size_t first,
                const float* factor) noexcept {
  float* const weights = tile.weights + first * Tile<V>::kRows;
  float* const errors = tile.errors + first * Tile<V>::kRows;
  const std::size_t count =
      problem.cols - first < V::kPanelCols ? problem.cols - first : V::kPanelCols;
  for (std::size_t c = 0; c < count; ++c) {
    const auto group =
        problem.column_groups ? static_cast<std::size_t>(problem.column_groups[first + c]) : 0;
    const float* const row = factor + c * V::kPanelCols;
    for (std::size_t half = 0; half < Tile<V>::kRows; half += V::kLanes) {
      const std::size_t at = c * Tile<V>::kRows + half;
      const auto scale = V::load(tile.scales + group * Tile<V>::kRows + half);
      const auto zero = V::load(tile.zeros + group * Tile<V>::kRows + half);
      const auto weight = V::load(weights + at);
      const auto code = nearest_code<V>(weight, scale, zero, problem);
      const auto residual = V::subtract_product(weight, scale, V::subtract(code, zero));
      const auto error = V::divide(residual, V::broadcast(row[c]));
      V::store(weights + at, code);
      V::store(errors + at, error);
      for (std::size_t k = c + 1; k < count; ++k) {
        float* const later = weights + k * Tile<V>::kRows + half;
        V::store(later, V::subtract_product(V::load(later), error, V::broadcast(row[k])));
      }
    }
  }
}

// --- the edges: row-major outside, column after column inside ------------------------------------

// (rows, cols) of a row-major matrix to (cols, kRows); rows beyond are zeros. A cache line of the
// source at a time.
template <class V>
void load_transposed(const float* from, std::size_t rows, std::size_t cols, float* to) noexcept {
  constexpr std::size_t kStep = 16;
  for (std::size_t first = 0; first < cols; first += kStep) {
    const std::size_t end = cols - first < kStep ? cols : first + kStep;
    for (std::size_t r = 0; r < Tile<V>::kRows; ++r) {
      for (std::size_t k = first; k < end; ++k) {
        to[k * Tile<V>::kRows + r] = r < rows ? from[r * cols + k] : 0.0f;
      }
    }
  }
}

template <class V>
void store_codes(const float* from, std::size_t rows, std::size_t cols, std::int8_t* to) noexcept {
  constexpr std::size_t kStep = 64;
  for (std::size_t first = 0; first < cols; first += kStep) {
    const std::size_t end = cols - first < kStep ? cols : first + kStep;
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t k = first; k < end; ++k) {
        to[r * cols + k] = static_cast<std::int8_t>(from[k * Tile<V>::kRows + r]);
      }
    }
  }
}

template <class V>
void fill(float* values, std::size_t count) noexcept {
  for (std::size_t i = 0; i < count; ++i) values[i] = 0.0f;
}

template <class V>
std::size_t rows_of_tile(const Problem& problem, std::size_t first_row) noexcept {
  const std::size_t left = problem.rows - first_row;
  return left < Tile<V>::kRows ? left : Tile<V>::kRows;
}

template <class V>
Tile<V> load_tile(const Problem& problem, std::size_t first_row, float* scratch) noexcept {
  constexpr std::size_t kRows = Tile<V>::kRows;
  const std::size_t padded = (problem.cols + V::kPanelCols - 1) / V::kPanelCols * V::kPanelCols;
  const Tile<V> tile{scratch, scratch + padded * kRows, scratch + 2 * padded * kRows,
                     scratch + (2 * padded + problem.groups) * kRows};
  const std::size_t rows = rows_of_tile<V>(problem, first_row);
  const std::size_t at = first_row * problem.groups;
  load_transposed<V>(problem.weights + first_row * problem.cols, rows, problem.cols, tile.weights);
  fill<V>(tile.weights + problem.cols * kRows, (padded - problem.cols) * kRows);
  load_transposed<V>(problem.scales + at, rows, problem.groups, tile.scales);
  if (problem.zero_points != nullptr) {
    load_transposed<V>(problem.zero_points + at, rows, problem.groups, tile.zeros);
  } else {
    fill<V>(tile.zeros, problem.groups * kRows);
  }
  return tile;
}

/// The entry of Kernels: several tiles together, as each part of U, once in the cache, serves all.
template <class V>
void quantize_tiles(const Problem& problem, std::size_t first_row, std::size_t tiles,
                    float* scratch) noexcept {
  constexpr std::size_t kRows = Tile<V>::kRows;
  Tile<V> all[kMaxTiles];
  for (std::size_t t = 0; t < tiles; ++t) {
    all[t] = load_tile<V>(problem, first_row + t * kRows, scratch + t * problem.tile_floats);
  }
  const float* factor = problem.packed_factor;
  for (std::size_t first = 0; first < problem.cols; first += V::kPanelCols) {
    for (std::size_t from = 0; from < first; from += problem.block_cols) {
      const std::size_t depth =
          first - from < problem.block_cols ? first - from : problem.block_cols;
      for (std::size_t t = 0; t < tiles; ++t) {
        subtract_errors<V>(all[t].errors + from * kRows, factor + from * V::kPanelCols, depth,
                           all[t].weights + first * kRows);
      }
    }
    factor += first * V::kPanelCols;
    for (std::size_t t = 0; t < tiles; ++t) code_panel<V>(problem, all[t], first, factor);
    factor += V::kPanelCols * V::kPanelCols;
  }
  for (std::size_t t = 0; t < tiles; ++t) {
    const std::size_t row = first_row + t * kRows;
    store_codes<V>(all[t].weights, rows_of_tile<V>(problem, row), problem.cols,
                   problem.codes + row * problem.cols);
  }
}

}  // namespace flyweight::gptq::detail
