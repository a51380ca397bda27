#include <sparseprune/submask.h>

#include "scratch.h"
#include "simd.h"

namespace sparseprune {
namespace {

// The low bits of `bits`, one by one, where `mask` has its set bits.
inline uint64_t deposit(uint64_t bits, uint64_t mask) {
#if defined(__BMI2__)
  return _pdep_u64(bits, mask);
#else
  uint64_t out = 0;
  for (; mask != 0; mask &= mask - 1, bits >>= 1) {
    if (bits & 1) out |= mask & (~mask + 1);
  }
  return out;
#endif
}

// The bits of `bits` where `mask` has its set bits, side by side.
inline uint64_t extract(uint64_t bits, uint64_t mask) {
#if defined(__BMI2__)
  return _pext_u64(bits, mask);
#else
  uint64_t out = 0;
  for (int i = 0; mask != 0; mask &= mask - 1, ++i) {
    if (bits & mask & (~mask + 1)) out |= uint64_t{1} << i;
  }
  return out;
#endif
}

// The set bits in the rows before each row, and in all.
inline void count_before(const int32_t* words, int64_t rows, int64_t row_words, Scratch<int64_t>& first) {
  first[0] = 0;
  for (int64_t row = 0; row < rows; ++row)
    first[row + 1] = first[row] + count_kept(words + row * row_words, row_words / 2);
}

// body(values of the word's first column, bits, columns) over the words of rows [begin, end) of a weight.
template <class T, class Body>
void for_row_words(T* weight, const int32_t* words, int64_t cols, int64_t begin, int64_t end, const Body& body) {
  const int64_t row_words = ceil_div(cols, 64);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t word = 0; word < row_words; ++word)
      body(weight + row * cols + 64 * word, load_bits(words, row * row_words + word), min_of(64, cols - 64 * word));
  }
}

}  // namespace

template <Isa isa>
void spread_bits(const int32_t* words, const int32_t* kept, int64_t rows, int64_t row_words, int32_t* out,
                 const Parallel& parallel) {
  Scratch<int64_t> first(rows + 1);
  count_before(words, rows, row_words, first);
  for_ranges(parallel, rows, grain_of(8 * row_words), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t i = first[row];
      for (int64_t word = row * row_words / 2; word < (row + 1) * row_words / 2; ++word) {
        const uint64_t mask = load_bits(words, word);
        const int count = __builtin_popcountll(mask);
        if (count == 0) {
          store_bits(out, word, 0);
          continue;
        }
        const int shift = static_cast<int>(i % 64);
        uint64_t bits = load_bits(kept, i / 64) >> shift;
        if (shift + count > 64) bits |= load_bits(kept, i / 64 + 1) << (64 - shift);
        store_bits(out, word, deposit(bits, mask));
        i += count;
      }
    }
  });
}

template <Isa isa>
Collected collect_bits(const int32_t* words, const int32_t* part, int64_t rows, int64_t row_words, int32_t* kept) {
  int64_t i = 0;
  Collected found = {0, 0};
  for (int64_t word = 0; word < rows * row_words / 2; ++word) {
    const uint64_t mask = load_bits(words, word), wanted = load_bits(part, word);
    found.strays += __builtin_popcountll(wanted & ~mask);
    const int count = __builtin_popcountll(mask);
    if (count == 0) continue;
    const uint64_t bits = extract(wanted, mask);
    found.kept += __builtin_popcountll(bits);
    const int shift = static_cast<int>(i % 64);
    store_bits(kept, i / 64, load_bits(kept, i / 64) | bits << shift);
    if (shift + count > 64) store_bits(kept, i / 64 + 1, bits >> (64 - shift));
    i += count;
  }
  return found;
}

template <Isa isa, class T>
void zero_pruned(T* weight, const int32_t* words, int64_t rows, int64_t cols, const Parallel& parallel) {
  for_ranges(parallel, rows, grain_of(cols * static_cast<int64_t>(sizeof(T))), [&](int64_t begin, int64_t end) {
    for_row_words(weight, words, cols, begin, end, [&](T* values, uint64_t bits, int64_t count) {
      if (bits == low_bits(count)) return;
      int64_t i = 0;
      for (; i + kLanes<T> <= count; i += kLanes<T>) store(values + i, load_selected(values + i, bits >> i));
      for (; i < count; ++i) {
        if (!(bits >> i & 1)) values[i] = 0;
      }
    });
  });
}

template <Isa isa, class T>
bool is_zero_outside(const T* weight, const int32_t* words, int64_t rows, int64_t cols, const Parallel& parallel) {
  int found = 0;
  for_ranges(parallel, rows, grain_of(cols * static_cast<int64_t>(sizeof(T))), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end && !__atomic_load_n(&found, __ATOMIC_RELAXED); ++row) {
      Vec<T> zero{};
      Vec<Int<T>> others = zero != zero;
      bool other = false;
      for_row_words(weight, words, cols, row, row + 1, [&](const T* values, uint64_t bits, int64_t count) {
        int64_t i = 0;
        for (; i + kLanes<T> <= count; i += kLanes<T>) others |= load_selected(values + i, ~bits >> i) != zero;
        for (; i < count; ++i) other |= !(bits >> i & 1) && values[i] != 0;
      });
      if (other || lane_bits<T>(others)) __atomic_store_n(&found, 1, __ATOMIC_RELAXED);
    }
  });
  return !found;
}

template <Isa isa, class T>
void collect_values(const T* weight, const int32_t* words, int64_t rows, int64_t cols, T* values,
                    const Parallel& parallel) {
  Scratch<int64_t> first(rows + 1);
  count_before(words, rows, 2 * ceil_div(cols, 64), first);
  for_ranges(parallel, rows, grain_of(cols), [&](int64_t begin, int64_t end) {
    T* next = values + first[begin];
    for_row_words(weight, words, cols, begin, end, [&](const T* from, uint64_t bits, int64_t) {
      for (; bits != 0; bits &= bits - 1) *next++ = from[__builtin_ctzll(bits)];
    });
  });
}

template <Isa isa, class T>
void spread_values(T* weight, const int32_t* words, int64_t rows, int64_t cols, const T* values,
                   const Parallel& parallel) {
  Scratch<int64_t> first(rows + 1);
  count_before(words, rows, 2 * ceil_div(cols, 64), first);
  for_ranges(parallel, rows, grain_of(cols), [&](int64_t begin, int64_t end) {
    const T* next = values + first[begin];
    for_row_words(weight, words, cols, begin, end, [&](T* to, uint64_t bits, int64_t) {
      for (; bits != 0; bits &= bits - 1) to[__builtin_ctzll(bits)] = *next++;
    });
  });
}

#define SPARSEPRUNE_INSTANTIATE(T)                                                                                  \
  template void zero_pruned<Isa::SPARSEPRUNE_ISA>(T*, const int32_t*, int64_t, int64_t, const Parallel&);           \
  template bool is_zero_outside<Isa::SPARSEPRUNE_ISA>(const T*, const int32_t*, int64_t, int64_t, const Parallel&); \
  template void collect_values<Isa::SPARSEPRUNE_ISA>(const T*, const int32_t*, int64_t, int64_t, T*,                \
                                                     const Parallel&);                                              \
  template void spread_values<Isa::SPARSEPRUNE_ISA>(T*, const int32_t*, int64_t, int64_t, const T*, const Parallel&)
SPARSEPRUNE_INSTANTIATE(float);
SPARSEPRUNE_INSTANTIATE(double);
#undef SPARSEPRUNE_INSTANTIATE

template void spread_bits<Isa::SPARSEPRUNE_ISA>(const int32_t*, const int32_t*, int64_t, int64_t, int32_t*,
                                                const Parallel&);
template Collected collect_bits<Isa::SPARSEPRUNE_ISA>(const int32_t*, const int32_t*, int64_t, int64_t, int32_t*);

}  // namespace sparseprune
