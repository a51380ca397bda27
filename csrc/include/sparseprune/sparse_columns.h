// The kept weights of a matrix by columns, and what one linear layer of a SynFlow pass does with them: the
// product, the gradient of its input, and the score w dR/dw of every kept weight.
//
// Bands of 256 rows, and each column by column, because the output of a band for a few dozen positions fits in
// the first cache while the columns (input channels times taps) do not. Scores leave in the order of the weights,
// row by row, through cursors: how many kept weights come before the part of a row that is in each of a few
// blocks of columns.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

inline constexpr int64_t kColumnBlocks = 8;
inline constexpr int64_t kBandRows = 256;

inline constexpr int64_t band_count(int64_t height) { return (height + kBandRows - 1) / kBandRows; }

// The columns of block b begin here.
inline constexpr int64_t column_block(int64_t cols, int64_t b) { return cols * b / kColumnBlocks; }

// starts: [bands * cols + 1]. rows, values: [entries], rows ascending in a column. cursors: [kColumnBlocks, height].
template <class T>
struct SparseColumns {
  int64_t height, cols;
  const int32_t* starts;
  const uint16_t* rows;
  const T* values;
  const int32_t* cursors;

  int64_t bands() const { return band_count(height); }
  int64_t entries() const { return starts[bands() * cols]; }
};

template <class T>
struct NewColumns {
  int32_t* starts;
  uint16_t* rows;
  T* values;
  int32_t* cursors;
};

// weight: [height, row_cols], words: its mask. The rows are cut into `groups` of equal size; those of group j
// stand in columns j row_cols and on, of groups * row_cols.
template <Isa isa, class T>
void pack_columns(const T* weight, const int32_t* words, int64_t height, int64_t row_cols, int64_t groups,
                  const NewColumns<T>& out, const Parallel& parallel);

// Of the kept weights, counted row by row, those whose bit in `kept` is set.
template <Isa isa, class T>
void narrow_columns(const SparseColumns<T>& columns, const int32_t* kept, const NewColumns<T>& out,
                    const Parallel& parallel);

// y[row, :] = scale[row] sum_k w[row, k] x[k, :]. x: [cols, width], y: [height, width]. A null scale is ones.
// width is 1, 4 or a multiple of 8.
template <Isa isa, class T>
void columns_product(const SparseColumns<T>& columns, const T* x, int64_t width, const T* scale, T* y,
                     const Parallel& parallel);

// With g[row, :] = scale[row] grad[row, :]: x_grad[k, :] = sum_row w[row, k] g[row, :], unless it is null, and
// scores[i] = w[row, k] <g[row, :], x[k, :]> for the i-th kept weight, counted row by row.
template <Isa isa, class T>
void columns_gradients(const SparseColumns<T>& columns, const T* grad, const T* x, int64_t width,
                       const T* scale, T* x_grad, T* scores, const Parallel& parallel);

}  // namespace sparseprune
