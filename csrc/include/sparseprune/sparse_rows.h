// The kept weights of a matrix row by row, and what one linear layer of a SynFlow pass does with them: the product, the
// gradient of its input, and the score w dR/dw of every kept weight, in the order of the weights.
//
// A row's columns are cut into a few blocks, so that the part of x (and of its gradient) that many rows read is still
// in the first cache when the next row comes, and so that threads own blocks of the gradient.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

inline constexpr int64_t kMostRowColumns = 65536;  // a column of a row has 16 bits
inline constexpr int64_t kFewestBlocks = 2, kTaskBlocks = 8, kMostBlocks = 64;
inline constexpr int64_t kBlockColumns = 512;  // of x, 32 KB for 16 positions
inline constexpr int64_t kListEntries = 12;    // of a row in a block; a list costs as much as a few of its entries

// Blocks of every row: a power of two that halves as entries go, so that narrowing joins pairs of them; up to
// kTaskBlocks for the threads, beyond for the cache. By the sizes alone: sums are added up block by block, and no bit may
// depend on the number of threads.
inline constexpr int64_t block_count(int64_t height, int64_t row_cols, int64_t entries) {
  int64_t blocks = kFewestBlocks;
  while (blocks < kMostBlocks && entries >= 2 * blocks * height * kListEntries &&
         (blocks < kTaskBlocks || 2 * blocks * kBlockColumns <= row_cols))
    blocks *= 2;
  return blocks;
}

// The columns of block b of a row begin here.
inline constexpr int64_t block_start(int64_t row_cols, int64_t blocks, int64_t b) { return row_cols * b / blocks; }

// The rows are cut into `groups` of equal size; those of group j have the columns j row_cols and on of x.
// starts: [height * blocks + 1]. columns, values: [entries], row by row, columns (of the row) ascending.
template <class T>
struct SparseRows {
  int64_t height, row_cols, groups, blocks;
  const int32_t* starts;
  const uint16_t* columns;
  const T* values;

  int64_t entries() const { return starts[height * blocks]; }
  int64_t group_rows() const { return height / groups; }
};

template <class T>
struct NewRows {
  int64_t blocks;
  int32_t* starts;
  uint16_t* columns;
  T* values;
};

// weight: [height, row_cols], words: its mask.
template <Isa isa, class T>
void pack_rows(const T* weight, const int32_t* words, int64_t height, int64_t row_cols, const NewRows<T>& out,
               const Parallel& parallel);

// Of the kept weights, in their order, those whose bit in `kept` is set. out.blocks divides rows.blocks.
template <Isa isa, class T>
void narrow_rows(const SparseRows<T>& rows, const int32_t* kept, const NewRows<T>& out, const Parallel& parallel);

// y[row, :] = scale[row] sum_k w[row, k] x[k, :]. x: [groups * row_cols, width], y: [height, width]. A null scale is
// ones. width is 1, 4 or a multiple of 8.
template <Isa isa, class T>
void rows_product(const SparseRows<T>& rows, const T* x, int64_t width, const T* scale, T* y, const Parallel& parallel);

// With g[row, :] = scale[row] grad[row, :]: x_grad[k, :] = sum_row w[row, k] g[row, :], unless it is null, and
// scores[i] = w[row, k] <g[row, :], x[k, :]> for the i-th kept weight. Returns the largest <g[row, :], x[k, :]> of all,
// 0 where all are negative.
template <Isa isa, class T>
T rows_gradients(const SparseRows<T>& rows, const T* grad, const T* x, int64_t width, const T* scale, T* x_grad,
                    T* scores, const Parallel& parallel);

}  // namespace sparseprune
