// The tensors of one selection in device memory, and the walk over their slots.
//
// A tile is 32 words of one tensor's mask, 1024 slots, and belongs to one warp. Tiles are numbered through
// all tensors and never straddle two, so that 1024 * tile + slot, the position of a slot, has the order of
// (tensor, flat index).
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch.cuh"
#include "scalar.cuh"
#include "sparseprune/cuda/mask_bits.h"
#include "sparseprune/cuda/topk_mask.h"

namespace sparseprune::cuda {

constexpr int kTileWords = kWarp;
constexpr int kTileSlots = 32 * kTileWords;
constexpr int kTableEntries = 56;  // 56 entries are 4032 bytes, and kernel arguments hold 4 KB

// One tensor in the device's table.
struct ScoreEntry {
  const void* scores;
  const void* gradients;  // null where the formula has none
  const uint32_t* candidates;
  uint32_t* kept;
  int64_t columns, row_words, words, first_tile;
  Dtype dtype;
  Formula formula;
};

struct ScoreTable {
  ScoreEntry* entries;
  int64_t tiles;
  int count;
};

struct TableSlice {
  ScoreEntry entries[kTableEntries];
};

inline int64_t words_of(const TopkTensor& tensor) { return tensor.rows * words_per_row(tensor.columns); }
inline int64_t tiles_of(const TopkTensor& tensor) { return (words_of(tensor) + kTileWords - 1) / kTileWords; }

inline int64_t all_tiles(const TopkTensor* tensors, int64_t count) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < count; ++i) tiles += tiles_of(tensors[i]);
  return tiles;
}

static __global__ void store_table_kernel(TableSlice slice, ScoreEntry* entries, int count) {
  if (static_cast<int>(threadIdx.x) < count) entries[threadIdx.x] = slice.entries[threadIdx.x];
}

// Enqueues the writing of the table: its rows travel as kernel arguments, so no host memory has to outlive
// the call.
inline cudaError_t store_table(const TopkTensor* tensors, ScoreTable table, cudaStream_t stream) {
  int64_t first_tile = 0;
  for (int first = 0; first < table.count; first += kTableEntries) {
    const int size = std::min(kTableEntries, table.count - first);
    TableSlice slice{};
    for (int i = 0; i < size; ++i) {
      const TopkTensor& tensor = tensors[first + i];
      slice.entries[i] = {tensor.scores,     has_gradient(tensor.formula) ? tensor.gradients : nullptr,
                          tensor.candidates, tensor.kept,
                          tensor.columns,    words_per_row(tensor.columns),
                          words_of(tensor),  first_tile,
                          tensor.dtype,      tensor.formula};
      first_tile += tiles_of(tensor);
    }
    const cudaError_t error =
        launch(store_table_kernel, dim3(1), kTableEntries, stream, slice, table.entries + first, size);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Index of the tensor a tile belongs to: the last one that starts at or before it (empty ones own no tile).
__device__ inline int tensor_of(const ScoreTable& table, int64_t tile) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.entries[middle].first_tile <= tile ? low : high) = middle;
  }
  return low;
}

// Calls body(tensor, tile) for this warp's tiles: equal runs of consecutive ones, so that the tensor is
// searched once and sums over a tensor are seldom flushed.
template <int kThreads, class Body>
__device__ void for_each_tile(const ScoreTable& table, const Body& body) {
  constexpr int kWarps = kThreads / kWarp;
  const int64_t warps = int64_t{gridDim.x} * kWarps;
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  const int64_t end = table.tiles * (warp + 1) / warps;
  int64_t tile = table.tiles * warp / warps;
  if (tile == end) return;
  int tensor = tensor_of(table, tile);
  for (; tile < end; ++tile) {
    while (tensor + 1 < table.count && table.entries[tensor + 1].first_tile <= tile) ++tensor;
    body(tensor, tile);
  }
}

}  // namespace sparseprune::cuda
