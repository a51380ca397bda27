// Packed masks: bit j of word w of a row is element 32 w + j of that row; a row has 2 ceil(cols / 64) words,
// and the bits beyond cols are zero. On a little-endian machine a row is as well ceil(cols / 64) 64-bit
// words.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

inline constexpr int64_t words_per_row(int64_t cols) { return 2 * ((cols + 63) / 64); }

// mask: [rows, cols] bytes, any non-zero byte is a kept element. words: [rows, words_per_row(cols)].
template <Isa isa>
void pack_mask(const uint8_t* mask, int64_t rows, int64_t cols, int32_t* words, const Parallel& parallel);

// The inverse: bytes 0 and 1.
template <Isa isa>
void unpack_mask(const int32_t* words, int64_t rows, int64_t cols, uint8_t* mask, const Parallel& parallel);

// counts[row]: the number of set bits of a row of `row_words` words.
template <Isa isa>
void count_mask(const int32_t* words, int64_t rows, int64_t row_words, int64_t* counts,
                const Parallel& parallel);

}  // namespace sparseprune
