// The kept slots of a weight as lists, decoded from the mask's bits once per call.
#pragma once

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

// The first list of part `part` of `parts`, so that the parts hold about as many survivors each.
template <class T>
inline int64_t first_list(const Lists<T>& lists, int64_t part, int64_t parts) {
  constexpr int64_t kListCost = 8;  // of an empty list, in survivors
  const int64_t total = lists.start[lists.count] - lists.start[0] + kListCost * lists.count;
  const int64_t target = total / parts * part + total % parts * part / parts;
  int64_t low = 0, high = lists.count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (lists.start[middle] - lists.start[0] + kListCost * middle < target) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return part == parts ? lists.count : low;
}

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

// A mask of [rows, cols] as one list a row. weight may be null: then there are no values.
template <class T>
class RowLists {
 public:
  RowLists(const T* weight, const int32_t* words, int64_t rows, int64_t cols, const Parallel& parallel)
      : rows_(rows), start_(rows + 1) {
    const int64_t row_words = ceil_div(cols, 64);
    start_[0] = 0;
    for_ranges(parallel, rows, grain_of(8 * row_words), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t count = 0;
        for (int64_t word = row * row_words; word < (row + 1) * row_words; ++word) {
          count += __builtin_popcountll(load_bits(words, word));
        }
        start_[row + 1] = count;
      }
    });
    for (int64_t row = 0; row < rows; ++row) start_[row + 1] += start_[row];
    index_.allocate(start_[rows]);
    if (weight != nullptr) value_.allocate(start_[rows]);
    for_ranges(parallel, rows, grain_of(64 * row_words), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int32_t* index = index_.get() + start_[row];
        T* value = weight == nullptr ? nullptr : value_.get() + start_[row];
        for (int64_t word = 0; word < row_words; ++word) {
          const uint64_t bits = load_bits(words, row * row_words + word);
          if (bits == 0) continue;
          const T* from = weight == nullptr ? nullptr : weight + row * cols + 64 * word;
          const int64_t kept = append_slots(bits, static_cast<int32_t>(64 * word), from, index, value);
          index += kept;
          if (weight != nullptr) value += kept;
        }
      }
    });
  }
  Lists<T> lists() { return {rows_, start_.get(), index_.get(), value_.get()}; }

 private:
  int64_t rows_;
  Scratch<int64_t> start_;
  Scratch<int32_t> index_;
  Scratch<T> value_;
};

// One list a column: of column c within row group g it is list g * cols + c, and its indices are rows within
// the group.
template <class T>
class ColumnLists {
 public:
  ColumnLists(const T* weight, const int32_t* words, int64_t rows, int64_t cols, int64_t groups,
              const Parallel& parallel)
      : count_(groups * cols), start_(groups * cols + 1) {
    const int64_t row_words = ceil_div(cols, 64), group_rows = rows / groups;
    // A task owns some words of every row of a group, so it meets its columns' rows in order.
    const int64_t task_words = 4, tasks = ceil_div(row_words, task_words);
    const int64_t grain = grain_of(64 * task_words * group_rows);
    const auto for_slots = [&](const auto& body) {
      for_ranges(parallel, groups * tasks, grain, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t group = task / tasks, first = task % tasks * task_words;
          for (int64_t row = 0; row < group_rows; ++row) {
            for (int64_t word = first; word < min_of(first + task_words, row_words); ++word) {
              uint64_t bits = load_bits(words, (group * group_rows + row) * row_words + word);
              for (; bits != 0; bits &= bits - 1) body(group, row, 64 * word + __builtin_ctzll(bits));
            }
          }
        }
      });
    };
    std::memset(start_.get(), 0, static_cast<size_t>(count_ + 1) * sizeof(int64_t));
    // Counted two places up, so that after the sums the place one up is where a list is filled next.
    int64_t* next = start_.get() + 1;
    for_slots([&](int64_t group, int64_t, int64_t column) { ++next[group * cols + column]; });
    int64_t total = 0;
    for (int64_t list = 0; list < count_; ++list) {
      const int64_t length = next[list];
      next[list] = total;
      total += length;
    }
    index_.allocate(total);
    value_.allocate(total);
    for_slots([&](int64_t group, int64_t row, int64_t column) {
      const int64_t at = next[group * cols + column]++;
      index_[at] = static_cast<int32_t>(row);
      value_[at] = weight[(group * group_rows + row) * cols + column];
    });
  }
  Lists<T> lists() { return {count_, start_.get(), index_.get(), value_.get()}; }

 private:
  int64_t count_;
  Scratch<int64_t> start_;
  Scratch<int32_t> index_;
  Scratch<T> value_;
};

}  // namespace
}  // namespace sparseprune
