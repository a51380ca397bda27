#include <sparseprune/mask_bits.h>

#include "common.h"

namespace sparseprune {
namespace {

// The bits of `count` <= 64 bytes, least significant first.
inline uint64_t pack_bytes(const uint8_t* bytes, int64_t count) {
#if defined(__AVX512BW__)
  const __m512i data = _mm512_maskz_loadu_epi8(low_bits(count), bytes);
  return _mm512_test_epi8_mask(data, data);
#else
  uint8_t padded[64];
  if (count < 64) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, bytes, static_cast<size_t>(count));
    bytes = padded;
  }
#if defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const auto low = _mm256_cmpeq_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)), zero);
  const auto high = _mm256_cmpeq_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32)), zero);
  const uint64_t zeros = static_cast<uint32_t>(_mm256_movemask_epi8(low)) |
                         static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(high))) << 32;
  return ~zeros;
#else
  uint64_t bits = 0;
  for (int group = 0; group < 8; ++group) {
    uint64_t eight;
    std::memcpy(&eight, bytes + 8 * group, sizeof(eight));
    // 1 in every non-zero byte, then the product gathers the eight ones in the top byte.
    const uint64_t nonzero = (((eight & 0x7f7f7f7f7f7f7f7full) + 0x7f7f7f7f7f7f7f7full) | eight) >> 7;
    bits |= ((nonzero & 0x0101010101010101ull) * 0x0102040810204080ull >> 56) << (8 * group);
  }
  return bits;
#endif
#endif
}

// `count` <= 64 bytes, 0 or 1, from bits.
inline void unpack_bytes(uint64_t bits, uint8_t* bytes, int64_t count) {
  uint8_t padded[64];
  uint8_t* out = count < 64 ? padded : bytes;
#if defined(__AVX512BW__)
  _mm512_storeu_si512(out, _mm512_maskz_set1_epi8(bits, 1));
#else
  for (int group = 0; group < 8; ++group) {
    // Byte i of the copies keeps bit i alone; adding 0x7f carries it, if set, to the byte's top bit.
    const uint64_t copies = ((bits >> (8 * group)) & 0xff) * 0x0101010101010101ull & 0x8040201008040201ull;
    const uint64_t ones = (((copies & 0x7f7f7f7f7f7f7f7full) + 0x7f7f7f7f7f7f7f7full) | copies) >> 7;
    const uint64_t eight = ones & 0x0101010101010101ull;
    std::memcpy(out + 8 * group, &eight, sizeof(eight));
  }
#endif
  // Not a store under a mask, which sanitizers do not see.
  if (count < 64) std::memcpy(bytes, padded, static_cast<size_t>(count));
}

// body(row, word64, first column, number of columns) over all 64-bit words of a [rows, cols] mask.
template <class Body>
void for_words(const Parallel& parallel, int64_t rows, int64_t cols, const Body& body) {
  const int64_t row_words = ceil_div(cols, 64);
  for_ranges(parallel, rows * row_words, grain_of(64), [&](int64_t begin, int64_t end) {
    int64_t row = begin / row_words, word = begin % row_words;
    for (int64_t i = begin; i < end; ++i) {
      body(i, row * cols + 64 * word, min_of(64, cols - 64 * word));
      if (++word == row_words) {
        word = 0;
        ++row;
      }
    }
  });
}

}  // namespace

template <Isa isa>
void pack_mask(const uint8_t* mask, int64_t rows, int64_t cols, int32_t* words, const Parallel& parallel) {
  for_words(parallel, rows, cols, [&](int64_t word, int64_t element, int64_t count) {
    store_bits(words, word, pack_bytes(mask + element, count));
  });
}

template <Isa isa>
void unpack_mask(const int32_t* words, int64_t rows, int64_t cols, uint8_t* mask, const Parallel& parallel) {
  for_words(parallel, rows, cols, [&](int64_t word, int64_t element, int64_t count) {
    unpack_bytes(load_bits(words, word), mask + element, count);
  });
}

template <Isa isa>
void count_mask(const int32_t* words, int64_t rows, int64_t row_words, int64_t* counts,
                const Parallel& parallel) {
  for_ranges(parallel, rows, grain_of(4 * row_words), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t count = 0;
      for (int64_t word = row * row_words / 2; word < (row + 1) * row_words / 2; ++word) {
        count += __builtin_popcountll(load_bits(words, word));
      }
      counts[row] = count;
    }
  });
}

template void pack_mask<Isa::SPARSEPRUNE_ISA>(const uint8_t*, int64_t, int64_t, int32_t*, const Parallel&);
template void unpack_mask<Isa::SPARSEPRUNE_ISA>(const int32_t*, int64_t, int64_t, uint8_t*, const Parallel&);
template void count_mask<Isa::SPARSEPRUNE_ISA>(const int32_t*, int64_t, int64_t, int64_t*, const Parallel&);

}  // namespace sparseprune
