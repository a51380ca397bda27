// What the products of a packed weight share: where in its values a row starts, and a row's part in a strip of columns.
#pragma once

#include "block.cuh"
#include "sparseprune/cuda/mask_bits.h"
#include "sparseprune/cuda/packed_linear.h"
#include "workspace.cuh"

namespace sparseprune::cuda {

constexpr int kRowThreads = 1024;
constexpr int kTileRows = kRowThreads / kWarp;
constexpr int kStripWords = 8;  // of a row: 32 bytes, which is what the L2 cache moves at once
constexpr int kStrip = 32 * kStripWords;

// Samples that a product takes at once, side by side in shared memory: 32 bytes.
template <class T>
constexpr int kMostSamples = 32 / static_cast<int>(sizeof(T));

// From one group of samples to the next. Neighbouring threads write them: 8 bytes between them spread the many samples
// over the banks.
template <class T, int kSamples>
constexpr int kSampleStride = kSamples * sizeof(T) < 32 ? kSamples : kSamples + 8 / static_cast<int>(sizeof(T));

struct Packed {
  const uint32_t* words;
  LinearShape shape;
  int64_t row_words, kept;
};

inline Packed packed_weight(const uint32_t* words, LinearShape shape, int64_t kept) {
  return {words, shape, words_per_row(shape.in_features), kept};
}

inline __host__ __device__ int64_t tiles_of_rows(const LinearShape& shape) {
  return (shape.out_features + kTileRows - 1) / kTileRows;
}
inline __host__ __device__ int64_t strips_of(const LinearShape& shape) {
  return (shape.in_features + kStrip - 1) / kStrip;
}

struct Strips {
  int64_t* tile_counts;  // [tiles_of_rows(shape)]: survivors of every kTileRows rows
  int64_t* starts;       // [out_features, strips_of(shape)]: of a row's part in a strip

  void lay_out(Layout& layout, const LinearShape& shape) {
    layout.array(tile_counts, tiles_of_rows(shape));
    layout.array(starts, shape.out_features * strips_of(shape));
  }
};

// One launch; row_start needs its result.
cudaError_t count_tiles(const Packed& packed, int64_t* tile_counts, cudaStream_t stream);

// That and a second launch.
cudaError_t find_strips(const Packed& packed, const Strips& strips, cudaStream_t stream);

// The word of this lane in the columns from `word0` on; no bits behind the last row and column.
__device__ inline uint32_t word_of(const Packed& packed, int64_t row, int64_t word0) {
  const int64_t word = word0 + threadIdx.x % kWarp;
  return row < packed.shape.out_features && word < packed.row_words ? packed.words[row * packed.row_words + word] : 0;
}

// Where in the values the row of this warp starts, which may lie behind the last; a block of kRowThreads calls.
__device__ inline int64_t row_start(const Packed& packed, const int64_t* tile_counts, int64_t tile, int64_t row) {
  __shared__ int64_t row_counts[kTileRows];
  int64_t count = 0, before = 0;
  for (int64_t word = 0; word < packed.row_words; word += kWarp) {
    count += __reduce_add_sync(kFullWarp, static_cast<unsigned>(__popc(word_of(packed, row, word))));
  }
  if (threadIdx.x % kWarp == 0) row_counts[threadIdx.x / kWarp] = count;
  for (int64_t other = threadIdx.x; other < tile; other += kRowThreads) before += tile_counts[other];
  int64_t start = block_sum<kRowThreads>(before).total;  // its barrier orders the counts of the rows, too
  for (int other = 0; other < static_cast<int>(threadIdx.x) / kWarp; ++other) start += row_counts[other];
  return start;
}

}  // namespace sparseprune::cuda
