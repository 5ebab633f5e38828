// What each instruction set implements. Declarations of plain types only: files with flags of their
// own include this.
//
// Packed factor: columns of U in panels of `panel_cols`, the last one padded with zeros. A panel is
// its rows one after the other, `panel_cols` floats each, from row 0 to that of its last column:
// what the errors of all columns up to there are multiplied with, in the order it is needed.
//
// Tile: `tile_rows` rows of weights, held column after column, so that the lanes of a vector are
// rows. Rows that the matrix does not have are zeros.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flyweight::gptq::detail {

/// One matrix, for all tiles. Null where the caller gave nothing.
struct Problem {
  const float* weights;               ///< (rows, cols)
  const float* packed_factor;         ///< see above
  const float* scales;                ///< (rows, groups)
  const float* zero_points;           ///< (rows, groups), may be null
  const std::int32_t* column_groups;  ///< (cols,), may be null: all group 0
  std::size_t rows, cols, groups;     ///< none of them 0
  std::size_t block_cols;             ///< at least 1
  std::size_t tile_floats;            ///< scratch of a tile: tile_rows * 2 * (padded cols + groups)
  float lo, hi;                       ///< lowest and highest code
  std::int8_t* codes;                 ///< (rows, cols), to be written
};

struct Kernels {
  std::size_t panel_cols;
  std::size_t tile_rows;
  /// Codes the rows from `first_row` on, 1 to kMaxTiles tiles of them. `scratch` starts at a
  /// multiple of kAlignment bytes and has `tiles * tile_floats` floats.
  void (*quantize)(const Problem& problem, std::size_t first_row, std::size_t tiles,
                   float* scratch) noexcept;
};

/// Tiles worked on together, and bytes.
inline constexpr std::size_t kMaxTiles = 4;
inline constexpr std::size_t kAlignment = 64;

extern const Kernels kScalar;
extern const Kernels kAvx2;    ///< exists on x86-64 only
extern const Kernels kAvx512;  ///< exists on x86-64 only

}  // namespace flyweight::gptq::detail
