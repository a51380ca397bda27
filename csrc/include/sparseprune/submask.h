// A mask within a mask: of the set bits of a mask of rows, counted row by row, one bit each.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

// out: [rows, row_words], the i-th set bit of `words` where bit i of `kept` is set. first[row]: the set bits of the
// rows before.
template <Isa isa>
void spread_bits(const int32_t* words, const int32_t* kept, const int64_t* first, int64_t rows, int64_t row_words,
                 int32_t* out, const Parallel& parallel);

// How many bits of `part` are within `words`, and how many are not.
struct Collected {
  int64_t kept, strays;
};

// The inverse: bit i of `kept` (zeros when called) is the bit of `part` where the i-th set bit of `words` is.
template <Isa isa>
Collected collect_bits(const int32_t* words, const int32_t* part, int64_t rows, int64_t row_words, int32_t* kept);

}  // namespace sparseprune
