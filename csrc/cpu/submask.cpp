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

}  // namespace

template <Isa isa>
void spread_bits(const int32_t* words, const int32_t* kept, int64_t rows, int64_t row_words, int32_t* out,
                 const Parallel& parallel) {
  Scratch<int64_t> first(rows + 1);  // the set bits of the rows before
  first[0] = 0;
  for (int64_t row = 0; row < rows; ++row) {
    first[row + 1] = first[row];
    for (int64_t word = row * row_words / 2; word < (row + 1) * row_words / 2; ++word)
      first[row + 1] += __builtin_popcountll(load_bits(words, word));
  }
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
  const int64_t row_words = ceil_div(cols, 64);
  for_ranges(parallel, rows, grain_of(cols * static_cast<int64_t>(sizeof(T))), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t word = 0; word < row_words; ++word) {
        T* slots = weight + row * cols + 64 * word;
        const uint64_t kept = load_bits(words, row * row_words + word);
        if (cols - 64 * word >= 64) {
          for (int i = 0; i < 64; i += kLanes<T>) store(slots + i, load_selected(slots + i, kept >> i));
        } else {
          uint64_t pruned = ~kept & low_bits(cols - 64 * word);
          for (; pruned != 0; pruned &= pruned - 1) slots[__builtin_ctzll(pruned)] = 0;
        }
      }
    }
  });
}

template void zero_pruned<Isa::SPARSEPRUNE_ISA>(float*, const int32_t*, int64_t, int64_t, const Parallel&);
template void zero_pruned<Isa::SPARSEPRUNE_ISA>(double*, const int32_t*, int64_t, int64_t, const Parallel&);
template void spread_bits<Isa::SPARSEPRUNE_ISA>(const int32_t*, const int32_t*, int64_t, int64_t, int32_t*,
                                                const Parallel&);
template Collected collect_bits<Isa::SPARSEPRUNE_ISA>(const int32_t*, const int32_t*, int64_t, int64_t, int32_t*);

}  // namespace sparseprune
