// Pack, unpack and count bits. A warp handles 32 consecutive words: its lanes are the bits of one word after
// the other, so that bytes are read and written 32 at a time and words 32 at a time, whatever the row length.
//
// Budget: 32 registers, 0 bytes of shared memory, no spills.
#include "sparseprune/cuda/mask_bits.h"

#include "launch.cuh"
#include "scalar.cuh"

namespace sparseprune::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpsPerBlock = kThreads / kWarp;

__global__ void __launch_bounds__(kThreads)
    pack_kernel(const uint8_t* __restrict__ mask, uint32_t* __restrict__ words, int64_t rows, int64_t columns,
                int64_t row_words) {
  const int lane = threadIdx.x % kWarp;
  const int64_t total = rows * row_words;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  int64_t base = int64_t{blockIdx.x} * kThreads + threadIdx.x / kWarp * kWarp;
  for (; base < total; base += stride) {
    auto [row, word] = divide(base, row_words);
    uint32_t mine = 0;
    for (int i = 0; i < kWarp && base + i < total; ++i) {
      const int64_t column = word * 32 + lane;
      const bool keep = column < columns && mask[row * columns + column] != 0;
      const uint32_t bits = __ballot_sync(kFullWarp, keep);
      mine = lane == i ? bits : mine;
      if (++word == row_words) {
        word = 0;
        ++row;
      }
    }
    if (base + lane < total) words[base + lane] = mine;
  }
}

__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const uint32_t* __restrict__ words, uint8_t* __restrict__ mask, int64_t rows,
                  int64_t columns, int64_t row_words) {
  const int lane = threadIdx.x % kWarp;
  const int64_t total = rows * row_words;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  int64_t base = int64_t{blockIdx.x} * kThreads + threadIdx.x / kWarp * kWarp;
  for (; base < total; base += stride) {
    auto [row, word] = divide(base, row_words);
    const uint32_t mine = base + lane < total ? words[base + lane] : 0u;
    for (int i = 0; i < kWarp && base + i < total; ++i) {
      const uint32_t bits = __shfl_sync(kFullWarp, mine, i);
      const int64_t column = word * 32 + lane;
      if (column < columns) mask[row * columns + column] = (bits >> lane) & 1u;
      if (++word == row_words) {
        word = 0;
        ++row;
      }
    }
  }
}

// One warp a row.
__global__ void __launch_bounds__(kThreads)
    count_kernel(const uint32_t* __restrict__ words, int64_t* __restrict__ counts, int64_t rows,
                 int64_t row_words) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = int64_t{gridDim.x} * kWarpsPerBlock;
  int64_t row = int64_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  for (; row < rows; row += stride) {
    long long count = 0;
    for (int64_t word = lane; word < row_words; word += kWarp) count += __popc(words[row * row_words + word]);
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      count += __shfl_xor_sync(kFullWarp, count, distance);
    }
    if (lane == 0) counts[row] = count;
  }
}

}  // namespace

cudaError_t pack_mask(const uint8_t* mask, uint32_t* words, int64_t rows, int64_t columns,
                      cudaStream_t stream) {
  const int64_t row_words = words_per_row(columns), total = rows * row_words;
  if (total == 0) return cudaSuccess;
  return launch(pack_kernel, grid_for(total, kThreads), kThreads, stream, mask, words, rows, columns,
                row_words);
}

cudaError_t unpack_mask(const uint32_t* words, uint8_t* mask, int64_t rows, int64_t columns,
                        cudaStream_t stream) {
  const int64_t row_words = words_per_row(columns), total = rows * row_words;
  if (total == 0) return cudaSuccess;
  return launch(unpack_kernel, grid_for(total, kThreads), kThreads, stream, words, mask, rows, columns,
                row_words);
}

cudaError_t count_mask(const uint32_t* words, int64_t* counts, int64_t rows, int64_t row_words,
                       cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return launch(count_kernel, grid_for(rows, kWarpsPerBlock), kThreads, stream, words, counts, rows,
                row_words);
}

}  // namespace sparseprune::cuda
