// The tile core of the masked products: a block computes a 64 x 64 tile of C = A B, 32 of the depth at a
// time.
//
// A is indexed (outer, depth) and so is B: C[m, n] = sum_k A(m, k) B(n, k). Both are read through sources,
// which are indexed (row, column) as in memory; Depth says which of the two is summed over. In either case a
// warp reads 32 consecutive columns of one row at once, so a masked source needs one word, a broadcast, for
// every 32 elements. The sum of each 32 deep step is formed first and then added to the total: errors grow
// with depth / 32.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "scalar.cuh"

namespace sparseprune::cuda {

constexpr int kTile = 64;
constexpr int kStep = 32;
constexpr int kGemmThreads = 256;
constexpr int kGemmBlocks =
    2;  // per multiprocessor: 128 registers a thread; without it ptxas aims for 3 and spills
constexpr int kGrid = 16;                                // the block's threads form a 16 x 16 grid,
constexpr int kPart = kTile / kGrid;                     // each owns 4 x 4 elements of C, 16 apart
constexpr int kSegments = kTile * kStep / kGemmThreads;  // 32-element segments of a tile that a warp loads

static_assert(kStep == kWarp, "a segment is one warp wide and one mask word long");

enum class Depth { kColumns, kRows };

// One more column than needed: writes along either index then touch 32 different banks.
template <class A>
using Tile = A[kStep][kTile + 1];

// A row-major matrix, of which only the elements with a set bit exist if words is not null.
template <class T>
struct Matrix {
  const T* data;
  const uint32_t* words;
  int64_t rows, columns, row_words;

  // Bits of the 32 elements from (row, column) on that are inside the matrix and kept; column % 32 == 0.
  __device__ uint32_t kept(int64_t row, int64_t column) const {
    if (row >= rows || column >= columns) return 0u;
    const int64_t left = columns - column;
    const uint32_t inside = left >= 32 ? ~0u : (1u << left) - 1u;
    return words == nullptr ? inside : inside & words[row * row_words + column / 32];
  }
};

// Fills tile[depth][outer] from (outer0, depth0) on; what the source lacks is 0.
template <Depth D, class T>
__device__ void load_tile(const Matrix<T>& source, int64_t outer0, int64_t depth0, Tile<Acc<T>>& tile) {
  const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kSegments;
  const auto row_of = [&](int s) { return D == Depth::kColumns ? outer0 + s : depth0 + s / 2; };
  const auto column_of = [&](int s) { return D == Depth::kColumns ? depth0 : outer0 + s % 2 * kStep; };
  const int own = first + lane % kSegments;
  const uint32_t words = source.kept(row_of(own), column_of(own));
#pragma unroll
  for (int i = 0; i < kSegments; ++i) {
    const int s = first + i;
    const uint32_t word = __shfl_sync(kFullWarp, words, i);
    const int64_t at = row_of(s) * source.columns + column_of(s) + lane;
    const Acc<T> value = (word >> lane) & 1u ? widen(source.data[at]) : Acc<T>(0);
    (D == Depth::kColumns ? tile[lane][s] : tile[s / 2][s % 2 * kStep + lane]) = value;
  }
}

// The same from a source that computes its elements: at(row(r), column(c)), which is 0 outside. The parts
// that depend on the row or the column alone (the divisions) are taken out of the loop over elements.
template <Depth D, class Source>
__device__ void load_tile(const Source& source, int64_t outer0, int64_t depth0,
                          Tile<typename Source::Value>& tile) {
  const int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kSegments;
  if constexpr (D == Depth::kColumns) {
    const auto column = source.column(depth0 + lane);
#pragma unroll
    for (int i = 0; i < kSegments; ++i) {
      tile[lane][first + i] = source.at(source.row(outer0 + first + i), column);
    }
  } else {
    const auto left = source.column(outer0 + lane), right = source.column(outer0 + kStep + lane);
#pragma unroll
    for (int i = 0; i < kSegments / 2; ++i) {
      const int depth = first / 2 + i;
      const auto row = source.row(depth0 + depth);
      tile[depth][lane] = source.at(row, left);
      tile[depth][kStep + lane] = source.at(row, right);
    }
  }
}

// Computes the tile of C at (row0, column0) and hands it to `out`: kept(row, column) is the word of the
// elements to be written as they are (the others are written as 0), address(column) the part of an address a
// column determines, put(row, column, address, value) writes.
template <Depth DepthOfA, Depth DepthOfB, class A, class SourceA, class SourceB, class Out>
__device__ void gemm_tile(const SourceA& a, const SourceB& b, const Out& out, int64_t row0, int64_t column0,
                          int64_t depth) {
  __shared__ Tile<A> tile_a;
  __shared__ Tile<A> tile_b;
  const int x = threadIdx.x % kGrid, y = threadIdx.x / kGrid;
  A total[kPart][kPart] = {};
  for (int64_t depth0 = 0; depth0 < depth; depth0 += kStep) {
    load_tile<DepthOfA>(a, row0, depth0, tile_a);
    load_tile<DepthOfB>(b, column0, depth0, tile_b);
    __syncthreads();
    A sum[kPart][kPart] = {};
#pragma unroll 4
    for (int k = 0; k < kStep; ++k) {
      A part_a[kPart], part_b[kPart];
#pragma unroll
      for (int i = 0; i < kPart; ++i) part_a[i] = tile_a[k][y + i * kGrid];
#pragma unroll
      for (int j = 0; j < kPart; ++j) part_b[j] = tile_b[k][x + j * kGrid];
#pragma unroll
      for (int i = 0; i < kPart; ++i) {
#pragma unroll
        for (int j = 0; j < kPart; ++j) sum[i][j] += part_a[i] * part_b[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
#pragma unroll
      for (int j = 0; j < kPart; ++j) total[i][j] += sum[i][j];
    }
    __syncthreads();
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t words[kPart];
#pragma unroll
    for (int i = 0; i < kPart; ++i) words[i] = out.kept(row0 + y + i * kGrid, column0 + half * kStep);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t column = column0 + half * kStep + j * kGrid + x;
      if (column >= out.columns) continue;
      const int64_t address = out.address(column);
#pragma unroll
      for (int i = 0; i < kPart; ++i) {
        const int64_t row = row0 + y + i * kGrid;
        const bool keep = (words[i] >> (j * kGrid + x)) & 1u;
        if (row < out.rows) out.put(row, column, address, keep ? total[i][2 * half + j] : A(0));
      }
    }
  }
}

// A row-major result: a bias per column is added, and elements whose bit is clear are written as 0.
template <class T>
struct MatrixOut {
  T* data;
  const T* bias;
  const uint32_t* words;
  int64_t rows, columns, row_words;

  __device__ uint32_t kept(int64_t row, int64_t column) const {
    return words == nullptr || row >= rows || column >= columns ? ~0u : words[row * row_words + column / 32];
  }
  __device__ int64_t address(int64_t column) const { return column; }
  __device__ void put(int64_t row, int64_t column, int64_t address, Acc<T> value) const {
    data[row * columns + address] = narrow<T>(bias == nullptr ? value : value + widen(bias[column]));
  }
};

inline __host__ __device__ int64_t tiles_of(int64_t extent) { return (extent + kTile - 1) / kTile; }

// Calls body(group, row0, column0) for this block's share of the tiles of `groups` results of rows x columns.
template <class Body>
__device__ void for_each_tile(int64_t groups, int64_t rows, int64_t columns, const Body& body) {
  const int64_t across = tiles_of(columns), per_group = tiles_of(rows) * across;
  for (int64_t tile = blockIdx.x; tile < groups * per_group; tile += gridDim.x) {
    const auto [group, in_group] = divide(tile, per_group);
    const auto [down, right] = divide(in_group, across);
    body(group, down * kTile, right * kTile);
  }
}

}  // namespace sparseprune::cuda
