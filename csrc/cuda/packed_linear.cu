// Packed linear layer: the mask's bits are decoded as they are read, so that of W only survivors travel.
//
// A first launch counts the survivors of every tile of rows. Then a block owns a tile of rows and some samples: it sums
// the counts of the tiles before its own, and each of its warps walks a row, a word a lane; the running sum of the
// words' popcounts tells a lane where its survivors start. The samples lie in shared memory, their values at one column
// side by side, so that a survivor meets all of them in one or two loads.
//
// What a call reads for 16 samples and 4096 x 4096 in bfloat16 at density 0.1: 3.4 MB of values and 2.1 MB of bits,
// these twice, where dense reads 33.6 MB; and x, 131 KB, once a block from the L2 cache. Every further 16 samples read
// values and bits again, from the L2 cache where they fit, and multiply survivors alone.
//
// Budget: 64 registers, 41472 bytes of shared memory, no spills.
#include "sparseprune/cuda/packed_linear.h"

#include "packed_rows.cuh"
#include "scalar.cuh"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = kRowThreads;
constexpr int kTileColumns = 32 * kWarp;
static_assert(kTileColumns == kThreads, "a thread stages a column");

template <class T, int kSamples>
__global__ void __launch_bounds__(kThreads)
    packed_linear_kernel(const T* x, const T* values, Packed packed, const int64_t* tile_counts, const T* bias, T* y) {
  constexpr int kStride = kSampleStride<T, kSamples>;
  alignas(8) __shared__ T staged[kTileColumns * kStride];
  const int64_t batch = packed.shape.batch, in = packed.shape.in_features, out = packed.shape.out_features;
  const int64_t tiles = tiles_of_rows(packed.shape), tasks = tiles * ((batch + kSamples - 1) / kSamples);
  const int lane = threadIdx.x % kWarp;
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) {
    const int64_t tile = task % tiles, sample0 = task / tiles * kSamples;
    const int64_t row = tile * kTileRows + threadIdx.x / kWarp;
    int64_t next = row_start(packed, tile_counts, tile, row);
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
      const T *value = values + next + up_to - count, *const end = values + packed.kept;
      next += __shfl_sync(kFullWarp, up_to, kWarp - 1);
      for (; bits != 0 && value < end; bits &= bits - 1) {
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
cudaError_t multiply(const void* x, const void* values, const Packed& packed, const int64_t* tile_counts,
                     const void* bias, void* y, cudaStream_t stream) {
  const int64_t tasks = tiles_of_rows(packed.shape) * ((packed.shape.batch + kSamples - 1) / kSamples);
  return launch(packed_linear_kernel<T, kSamples>, grid_for(tasks), kThreads, stream, static_cast<const T*>(x),
                static_cast<const T*>(values), packed, tile_counts, static_cast<const T*>(bias), static_cast<T*>(y));
}

}  // namespace

size_t packed_linear_workspace_size(LinearShape shape) {
  return sizeof(int64_t) * static_cast<size_t>(tiles_of_rows(shape));
}

cudaError_t packed_linear(const void* x, const void* values, const uint32_t* words, const void* bias, void* y,
                          LinearShape shape, int64_t kept, Dtype dtype, void* workspace, cudaStream_t stream) {
  if (shape.batch == 0 || shape.out_features == 0) return cudaSuccess;
  const Packed packed = packed_weight(words, shape, kept);
  const auto tile_counts = static_cast<int64_t*>(workspace);
  const cudaError_t error = count_tiles(packed, tile_counts, stream);
  if (error != cudaSuccess) return error;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (shape.batch == 1) return multiply<T, 1>(x, values, packed, tile_counts, bias, y, stream);
    return multiply<T, kMostSamples<T>>(x, values, packed, tile_counts, bias, y, stream);
  });
}

}  // namespace sparseprune::cuda
