// Packed masks on a CUDA device: boolean -> bits, bits -> boolean, bits set in every row.
//
// A mask of [rows, columns] elements is [rows, words_per_row(columns)] 32-bit words: bit j of word w of a row
// is element 32 w + j of that row, unused bits are zero. All pointers are device pointers to contiguous
// arrays; the work is enqueued on `stream` and nothing is waited for. The result is the launch's error.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

namespace sparseprune::cuda {

// Rows are padded to 64 bits.
constexpr int64_t words_per_row(int64_t columns) { return 2 * ((columns + 63) / 64); }

// mask [rows, columns], one byte each, non-zero = keep -> words [rows, words_per_row(columns)].
cudaError_t pack_mask(const uint8_t* mask, uint32_t* words, int64_t rows, int64_t columns,
                      cudaStream_t stream);

// words [rows, words_per_row(columns)] -> mask [rows, columns] of bytes 0 and 1.
cudaError_t unpack_mask(const uint32_t* words, uint8_t* mask, int64_t rows, int64_t columns,
                        cudaStream_t stream);

// words [rows, row_words] -> counts [rows], the bits set in each row.
cudaError_t count_mask(const uint32_t* words, int64_t* counts, int64_t rows, int64_t row_words,
                       cudaStream_t stream);

}  // namespace sparseprune::cuda
