// The kept slots of a weight as lists, decoded from the mask's bits once per call.
#pragma once

#include <sparseprune/weight.h>

#include "scratch.h"
#include "simd.h"

namespace sparseprune {
namespace {

// Lists of (index, value): list i is [start[i], start[i + 1]).
template <class T>
struct Lists {
  int64_t count;
  const int64_t* start;
  const int32_t* index;
  const T* value;
};

// Appends the set slots of one 64-bit word: indices from `base`, values from `weight` (not read where it is
// null).
template <class T>
inline int64_t append_slots(uint64_t bits, int32_t base, const T* weight, int32_t* index, T* value) {
  int64_t count = 0;
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int i = 0; i < 64; i += 16) {
      const auto set = static_cast<__mmask16>(bits >> i);
      if (set == 0) continue;
      const int kept = __builtin_popcount(set);
      // Stored under a mask: what follows may be another thread's list already.
      const auto low = static_cast<__mmask16>(low_bits(kept));
      const __m512i columns = _mm512_add_epi32(lanes, _mm512_set1_epi32(base + i));
      _mm512_mask_storeu_epi32(index + count, low, _mm512_maskz_compress_epi32(set, columns));
      if (weight != nullptr) {
        const __m512 values = _mm512_maskz_compress_ps(set, _mm512_maskz_loadu_ps(set, weight + i));
        _mm512_mask_storeu_ps(value + count, low, values);
      }
      count += kept;
    }
    return count;
  }
#endif
  for (; bits != 0; bits &= bits - 1, ++count) {
    const int slot = __builtin_ctzll(bits);
    index[count] = base + slot;
    if (weight != nullptr) value[count] = weight[slot];
  }
  return count;
}

// A weight of [rows, cols] as one list a row, without values where it has none.
template <class T>
class RowLists {
 public:
  RowLists(const Weight<const T>& weight, int64_t rows, int64_t cols, const Parallel& parallel)
      : rows_(rows), start_(rows + 1) {
    const int64_t row_words = ceil_div(cols, 64);
    const int32_t* words = weight.words;
    const bool gather = weight.values != nullptr && !weight.packed();
    start_[0] = 0;
    for_ranges(parallel, rows, grain_of(8 * row_words), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        start_[row + 1] = count_kept(words + 2 * row * row_words, row_words);
      }
    });
    for (int64_t row = 0; row < rows; ++row) start_[row + 1] += start_[row];
    index_.allocate(start_[rows]);
    if (gather) value_.allocate(start_[rows]);
    values_ = gather ? value_.get() : weight.values;
    for_ranges(parallel, rows, grain_of(64 * row_words), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int32_t* index = index_.get() + start_[row];
        T* value = gather ? value_.get() + start_[row] : nullptr;
        for (int64_t word = 0; word < row_words; ++word) {
          const uint64_t bits = load_bits(words, row * row_words + word);
          if (bits == 0) continue;
          const T* from = gather ? weight.values + row * cols + 64 * word : nullptr;
          const int64_t kept = append_slots(bits, static_cast<int32_t>(64 * word), from, index, value);
          index += kept;
          if (gather) value += kept;
        }
      }
    });
  }
  Lists<T> lists() const { return {rows_, start_.get(), index_.get(), values_}; }
  int32_t* indices() const { return index_.get(); }

 private:
  int64_t rows_;
  const T* values_;
  Scratch<int64_t> start_;
  Scratch<int32_t> index_;
  Scratch<T> value_;
};

}  // namespace
}  // namespace sparseprune
