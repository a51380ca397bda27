#include <sparseprune/submask.h>

#include "common.h"

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
void spread_bits(const int32_t* words, const int32_t* kept, const int64_t* first, int64_t rows, int64_t row_words,
                 int32_t* out, const Parallel& parallel) {
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

template void spread_bits<Isa::SPARSEPRUNE_ISA>(const int32_t*, const int32_t*, const int64_t*, int64_t, int64_t,
                                                int32_t*, const Parallel&);
template Collected collect_bits<Isa::SPARSEPRUNE_ISA>(const int32_t*, const int32_t*, int64_t, int64_t, int32_t*);

}  // namespace sparseprune
