// A mask within a mask: of the set bits of a mask of rows, counted row by row, one bit or one value each.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

// out: [rows, row_words], the i-th set bit of `words` where bit i of `kept` is set.
template <Isa isa>
void spread_bits(const int32_t* words, const int32_t* kept, int64_t rows, int64_t row_words,
                 int32_t* out, const Parallel& parallel);

// How many bits of `part` are within `words`, and how many are not.
struct Collected {
  int64_t kept, strays;
};

// The inverse: bit i of `kept` (zeros when called) is the bit of `part` where the i-th set bit of `words` is.
template <Isa isa>
Collected collect_bits(const int32_t* words, const int32_t* part, int64_t rows, int64_t row_words, int32_t* kept);

// weight: [rows, cols], becomes zero where the bit of `words` is not set.
template <Isa isa, class T>
void zero_pruned(T* weight, const int32_t* words, int64_t rows, int64_t cols, const Parallel& parallel);

// Is it zero there already? NaN is not.
template <Isa isa, class T>
bool is_zero_outside(const T* weight, const int32_t* words, int64_t rows, int64_t cols, const Parallel& parallel);

// values: what `words` keeps of weight [rows, cols], row by row.
template <Isa isa, class T>
void collect_values(const T* weight, const int32_t* words, int64_t rows, int64_t cols, T* values,
                    const Parallel& parallel);

// The inverse: only slots that `words` keeps are written.
template <Isa isa, class T>
void spread_values(T* weight, const int32_t* words, int64_t rows, int64_t cols, const T* values,
                   const Parallel& parallel);

}  // namespace sparseprune
