// The kept slots of a weight as lists, decoded from the mask's bits once per call.
#pragma once

#include <sparseprune/weight.h>

#include "scratch.h"
#include "simd.h"

namespace sparseprune {
namespace {

// Rows that are asked for before their turn: no hardware prefetcher follows one row's piece to the next row's.
constexpr int64_t kAhead = 2;

// Lists of (index, value): list i is [start[i], start[i + 1]).
template <class T>
struct Lists {
  int64_t count;
  const int64_t* start;
  const int32_t* index;
  const T* value;
};

#if defined(__AVX512F__)
// append_indices with an instruction of Ice Lake and Zen 4: a word's slots become a vector of bytes.
__attribute__((target("avx512vbmi2"))) inline int64_t append_bytes(const int32_t* words, int64_t first, int64_t last,
                                                                   int32_t* index) {
  alignas(64) static constexpr uint8_t kSlots[64] = {
      0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
  const __m512i slots = _mm512_load_si512(kSlots);
  const int32_t* begin = index;
  for (int64_t word = first; word < last; ++word) {
    const uint64_t bits = load_bits(words, word);
    const int kept = __builtin_popcountll(bits);
    const __m512i bytes = _mm512_maskz_compress_epi8(bits, slots);
    const __m512i base = _mm512_set1_epi32(static_cast<int32_t>(64 * word));
    // Under masks of ones: of the plain forms GCC 12 says that they read what was never set.
    const auto write = [&](int i, __m128i some) {
      _mm512_storeu_si512(index + i, _mm512_add_epi32(base, _mm512_maskz_cvtepu8_epi32(0xffff, some)));
    };
    write(0, _mm512_maskz_extracti32x4_epi32(0xf, bytes, 0));
    if (kept > 16) {
      alignas(64) uint8_t sorted[64];
      _mm512_store_si512(sorted, bytes);
      for (int i = 16; i < kept; i += 16) write(i, _mm_load_si128(reinterpret_cast<const __m128i*>(sorted + i)));
    }
    index += kept;
  }
  return index - begin;
}
#endif

// Indices that append_indices may write after the last one, which are of no use.
constexpr int64_t kSpare = 64;

// Writes the indices of the slots that are set in words [first, last) of a row, and returns how many those are.
inline int64_t append_indices(const int32_t* words, int64_t first, int64_t last, int32_t* index) {
#if defined(__AVX512F__)
  static const bool compresses_bytes = __builtin_cpu_supports("avx512vbmi2");
  if (compresses_bytes) return append_bytes(words, first, last, index);
#endif
  const int32_t* begin = index;
  for (int64_t word = first; word < last; ++word) {
    uint64_t bits = load_bits(words, word);
    const int kept = __builtin_popcountll(bits);
    // Eight at a time, as the end of a loop over single ones is mispredicted.
    for (int32_t* next = index; bits != 0; next += 8) {
      for (int i = 0; i < 8; ++i, bits &= bits - 1) {
        next[i] = static_cast<int32_t>(64 * word) + __builtin_ctzll(bits | uint64_t{1} << 63);
      }
    }
    index += kept;
  }
  return index - begin;
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
      Scratch<int32_t> line(64 * row_words + kSpare);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t kept = append_indices(words + 2 * row * row_words, 0, row_words, line.get());
        std::memcpy(index_.get() + start_[row], line.get(), static_cast<size_t>(kept) * sizeof(int32_t));
        if (!gather) continue;
        const T* from = weight.values + row * cols;
        for (int64_t i = 0; i < kept; ++i) value_[start_[row] + i] = from[line[i]];
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
