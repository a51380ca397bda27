// The tensors of one selection in device memory, and the walk over their scores, 32 of a mask word at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "launch.cuh"
#include "scalar.cuh"
#include "sparseprune/cuda/mask_bits.h"
#include "sparseprune/cuda/topk_mask.h"

namespace sparseprune::cuda {

constexpr int kScoreThreads = 256;
constexpr int kChunkWords = kScoreThreads;  // 8192 scores; the select pass gives every thread one word
constexpr int kTableEntries = 64;           // 64 entries are 3.5 KB, and kernel arguments hold 4 KB

// One tensor in the device's table. Chunks are numbered through all tensors and never straddle two.
struct ScoreEntry {
  const void* scores;
  const uint32_t* candidates;
  uint32_t* kept;
  int64_t columns, row_words, words, first_chunk;
};

struct TableSlice {
  ScoreEntry entries[kTableEntries];
};

inline int64_t words_of(const TopkTensor& tensor) { return tensor.rows * words_per_row(tensor.columns); }
inline int64_t chunks_of(const TopkTensor& tensor) {
  return (words_of(tensor) + kChunkWords - 1) / kChunkWords;
}

inline int64_t all_chunks(const TopkTensor* tensors, int64_t count) {
  int64_t chunks = 0;
  for (int64_t i = 0; i < count; ++i) chunks += chunks_of(tensors[i]);
  return chunks;
}

static __global__ void store_table_kernel(TableSlice slice, ScoreEntry* table, int count) {
  if (static_cast<int>(threadIdx.x) < count) table[threadIdx.x] = slice.entries[threadIdx.x];
}

// Enqueues the writing of the table: its rows travel as kernel arguments, so no host memory has to outlive
// the call.
inline cudaError_t store_table(const TopkTensor* tensors, int64_t count, ScoreEntry* table,
                               cudaStream_t stream) {
  int64_t first_chunk = 0;
  for (int64_t first = 0; first < count; first += kTableEntries) {
    const int size = static_cast<int>(std::min<int64_t>(kTableEntries, count - first));
    TableSlice slice{};
    for (int i = 0; i < size; ++i) {
      const TopkTensor& tensor = tensors[first + i];
      slice.entries[i] = {
          tensor.scores,    tensor.candidates, tensor.kept, tensor.columns, words_per_row(tensor.columns),
          words_of(tensor), first_chunk};
      first_chunk += chunks_of(tensor);
    }
    const cudaError_t error =
        launch(store_table_kernel, dim3(1), kTableEntries, stream, slice, table + first, size);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// Unsigned keys in the order of the scores, -0.0 and +0.0 being one key.
__device__ inline uint32_t key_of(float score) {
  const uint32_t bits = score == 0.0f ? 0u : __float_as_uint(score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline uint64_t key_of(double score) {
  const uint64_t bits = score == 0.0 ? 0u : static_cast<uint64_t>(__double_as_longlong(score));
  return bits >> 63 ? ~bits : bits | (uint64_t{1} << 63);
}

// Index of the tensor a chunk belongs to: the last one that starts at or before it (empty ones own no chunk).
__device__ inline int64_t tensor_of(const ScoreEntry* table, int64_t count, int64_t chunk) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (table[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

// Calls body(i, competes, score) for the 32 words i of this warp's share of a chunk, a lane being a bit of
// the word. Whole warps call it; scores of slots that do not compete are not loaded.
template <class T, class Body>
__device__ void for_each_word(const ScoreEntry& entry, int64_t chunk, const Body& body) {
  const int lane = threadIdx.x % kWarp;
  const int64_t base = (chunk - entry.first_chunk) * kChunkWords + threadIdx.x / kWarp * kWarp;
  if (base >= entry.words) return;
  uint32_t own = ~0u;
  if (entry.candidates != nullptr) own = base + lane < entry.words ? entry.candidates[base + lane] : 0u;
  const T* scores = static_cast<const T*>(entry.scores);
  auto [row, word] = divide(base, entry.row_words);
  for (int i = 0; i < kWarp && base + i < entry.words; ++i) {
    const uint32_t candidates = __shfl_sync(kFullWarp, own, i);
    const int64_t column = word * 32 + lane;
    const bool competes = column < entry.columns && ((candidates >> lane) & 1u);
    body(i, competes, competes ? scores[row * entry.columns + column] : T(0));
    if (++word == entry.row_words) {
      word = 0;
      ++row;
    }
  }
}

}  // namespace sparseprune::cuda
