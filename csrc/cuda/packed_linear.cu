// Packed linear layer: the mask's bits are decoded as they are read, so that of W only survivors travel.
//
// A first launch counts the survivors of every tile of rows. Then a block owns a tile of rows and some samples: it sums
// the counts of the tiles before its own, and each of its warps walks a row, a word a lane; the running sum of the
// words' popcounts tells a lane where its survivors start. The samples lie in shared memory, their values at one column
// side by side, so that a survivor meets all of them in one or two loads.
//
// What a call reads for 16 samples and 4096 x 4096 in bfloat16 at density 0.1: 3.4 MB of values and 2.1 MB of bits,
// these twice, where dense reads 33.6 MB; and x, 131 KB, once a block from the L2 cache.
//
// Budget: 64 registers, 41472 bytes of shared memory, no spills.
#include "sparseprune/cuda/packed_linear.h"

#include "block.cuh"
#include "scalar.cuh"
#include "sparseprune/cuda/mask_bits.h"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kTileRows = kThreads / kWarp;
constexpr int kTileColumns = 32 * kWarp;
static_assert(kTileColumns == kThreads, "a thread stages a column");

template <class T>
constexpr int kMostSamples = 32 / static_cast<int>(sizeof(T));

struct Packed {
  const uint32_t* words;
  const int64_t* tile_counts;  // survivors of every kTileRows rows
  LinearShape shape;
  int64_t row_words;
};

int64_t row_tiles(const LinearShape& shape) { return (shape.out_features + kTileRows - 1) / kTileRows; }

__global__ void __launch_bounds__(kThreads)
    count_tiles_kernel(const uint32_t* words, int64_t* tile_counts, int64_t tiles, int64_t rows, int64_t row_words) {
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first = tile * kTileRows, last = first + kTileRows < rows ? first + kTileRows : rows;
    int64_t mine = 0;
    for (int64_t word = first * row_words + threadIdx.x; word < last * row_words; word += kThreads) {
      mine += __popc(words[word]);
    }
    const BlockSum sum = block_sum<kThreads>(mine);
    if (threadIdx.x == 0) tile_counts[tile] = sum.total;
    __syncthreads();
  }
}

// The word of this lane in the columns from `word0` on; no bits behind the last row and column.
__device__ uint32_t word_of(const Packed& packed, int64_t row, int64_t word0) {
  const int64_t word = word0 + threadIdx.x % kWarp;
  return row < packed.shape.out_features && word < packed.row_words ? packed.words[row * packed.row_words + word] : 0;
}

// Where in the values the row of this warp starts, which may lie behind the last.
__device__ int64_t row_start(const Packed& packed, int64_t tile, int64_t row) {
  __shared__ int64_t row_counts[kTileRows];
  int64_t count = 0, before = 0;
  for (int64_t word = 0; word < packed.row_words; word += kWarp) {
    count += __reduce_add_sync(kFullWarp, static_cast<unsigned>(__popc(word_of(packed, row, word))));
  }
  if (threadIdx.x % kWarp == 0) row_counts[threadIdx.x / kWarp] = count;
  for (int64_t other = threadIdx.x; other < tile; other += kThreads) before += packed.tile_counts[other];
  int64_t start = block_sum<kThreads>(before).total;  // its barrier orders the counts of the rows, too
  for (int other = 0; other < static_cast<int>(threadIdx.x) / kWarp; ++other) start += row_counts[other];
  return start;
}

template <class T, int kSamples>
__global__ void __launch_bounds__(kThreads)
    packed_linear_kernel(const T* x, const T* values, Packed packed, const T* bias, T* y) {
  // Columns are staged by neighbouring threads: 8 bytes between them spread the many samples over the banks.
  constexpr int kStride = kSamples * sizeof(T) < 32 ? kSamples : kSamples + 8 / static_cast<int>(sizeof(T));
  alignas(8) __shared__ T staged[kTileColumns * kStride];
  const int64_t batch = packed.shape.batch, in = packed.shape.in_features, out = packed.shape.out_features;
  const int64_t tiles = (out + kTileRows - 1) / kTileRows, tasks = tiles * ((batch + kSamples - 1) / kSamples);
  const int lane = threadIdx.x % kWarp;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t tile = task % tiles, sample0 = task / tiles * kSamples;
    const int64_t row = tile * kTileRows + threadIdx.x / kWarp;
    int64_t next = row_start(packed, tile, row);
    Acc<T> sums[kSamples] = {};
    for (int64_t column0 = 0; column0 < in; column0 += kTileColumns) {
      const int64_t column = column0 + threadIdx.x;
#pragma unroll
      for (int s = 0; s < kSamples; ++s) {
        const bool inside = column < in && sample0 + s < batch;
        staged[threadIdx.x * kStride + s] = inside ? x[(sample0 + s) * in + column] : narrow<T>(0);
      }
      __syncthreads();
      uint32_t bits = word_of(packed, row, column0 / 32);
      const int count = __popc(bits), up_to = warp_inclusive_sum(count);
      const T* value = values + next + up_to - count;
      next += __shfl_sync(kFullWarp, up_to, kWarp - 1);
      for (; bits != 0; bits &= bits - 1) {
        const Acc<T> weight = widen(*value++);
        const T* at = staged + (32 * lane + __ffs(static_cast<int>(bits)) - 1) * kStride;
#pragma unroll
        for (int s = 0; s < kSamples; ++s) sums[s] += weight * widen(at[s]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int s = 0; s < kSamples; ++s) {
#pragma unroll
      for (int distance = 1; distance < kWarp; distance *= 2) {
        sums[s] += __shfl_xor_sync(kFullWarp, sums[s], distance);
      }
      if (lane == s && row < out && sample0 + s < batch) {
        y[(sample0 + s) * out + row] = narrow<T>(bias == nullptr ? sums[s] : sums[s] + widen(bias[row]));
      }
    }
    __syncthreads();
  }
}

template <class T, int kSamples>
cudaError_t multiply(const void* x, const void* values, const Packed& packed, const void* bias, void* y,
                     cudaStream_t stream) {
  const int64_t tasks = row_tiles(packed.shape) * ((packed.shape.batch + kSamples - 1) / kSamples);
  return launch(packed_linear_kernel<T, kSamples>, grid_for(tasks), kThreads, stream, static_cast<const T*>(x),
                static_cast<const T*>(values), packed, static_cast<const T*>(bias), static_cast<T*>(y));
}

}  // namespace

size_t packed_linear_workspace_size(LinearShape shape) {
  return sizeof(int64_t) * static_cast<size_t>(row_tiles(shape));
}

cudaError_t packed_linear(const void* x, const void* values, const uint32_t* words, const void* bias, void* y,
                          LinearShape shape, Dtype dtype, void* workspace, cudaStream_t stream) {
  if (shape.batch == 0 || shape.out_features == 0) return cudaSuccess;
  const Packed packed{words, static_cast<int64_t*>(workspace), shape, words_per_row(shape.in_features)};
  const int64_t tiles = row_tiles(shape);
  const cudaError_t error =
      launch(count_tiles_kernel, grid_for(tiles), kThreads, stream, words, static_cast<int64_t*>(workspace), tiles,
             shape.out_features, packed.row_words);
  if (error != cudaSuccess) return error;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (shape.batch == 1) return multiply<T, 1>(x, values, packed, bias, y, stream);
    return multiply<T, kMostSamples<T>>(x, values, packed, bias, y, stream);
  });
}

}  // namespace sparseprune::cuda
