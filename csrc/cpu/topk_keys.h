// Scores as integers that order the same way, 64 at a time.
#pragma once

#include "simd.h"

namespace sparseprune {
namespace {

// Signed keys: a larger score has a larger key, and both zeros have key 0. Integers, because comparisons of
// floats depend on the thread's flush-denormals mode.
template <class T>
using Key = Int<T>;

template <class T>
constexpr int kKeyBits = 8 * static_cast<int>(sizeof(T));

template <class T>
inline Vec<Key<T>> keys_of(const T* scores) {
  constexpr Key<T> magnitude = static_cast<Key<T>>(~(uint64_t{1} << (kKeyBits<T> - 1)));
  const Vec<Key<T>> bits = (Vec<Key<T>>)load(scores);
  const Vec<Key<T>> sign = bits >> (kKeyBits<T> - 1);
  // For a negative score all bits but the sign are flipped; +1 lets -0.0 (flipped: -1) meet +0.0.
  return (bits ^ (sign & magnitude)) - sign;
}

// Whether any of 64 scores is NaN, and if so in which slots.
template <class T>
inline uint64_t nan_bits(const T* scores) {
  constexpr Key<T> magnitude = static_cast<Key<T>>(~(uint64_t{1} << (kKeyBits<T> - 1)));
  constexpr Key<T> infinity =
      sizeof(T) == 4 ? static_cast<Key<T>>(0x7f800000) : static_cast<Key<T>>(0x7ffll << 52);
  uint64_t result = 0;
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<Key<T>> bits = (Vec<Key<T>>)load(scores + i) & magnitude;
    result |= lane_bits<T>(bits > infinity) << i;
  }
  return result;
}

// Appends the lanes whose bit is set, in order; up to one vector beyond the end of `out` may be overwritten.
template <class T>
inline int64_t append_lanes(Key<T>* out, Vec<Key<T>> keys, uint64_t bits) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)keys));
  } else {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(static_cast<__mmask8>(bits), (__m512i)keys));
  }
  return __builtin_popcountll(bits);
#else
  int64_t count = 0;
  for (int i = 0; i < kLanes<T>; ++i) {
    out[count] = keys[i];
    count += static_cast<int64_t>(bits >> i & 1);
  }
  return count;
#endif
}

// Appends the keys of the set slots but those with key 0, whose number is added to `zeros`: pruned scores are
// zeros by the million, and would make every count of a histogram wait for the one before.
template <class T>
inline int64_t append_nonzero(Key<T>* out, const T* scores, uint64_t slots, int64_t& zeros) {
  int64_t count = 0;
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<Key<T>> keys = keys_of(scores + i);
    const uint64_t lanes = slots >> i & low_bits(kLanes<T>);
    const uint64_t nonzero = lanes & ~lane_bits<T>(keys == Vec<Key<T>>{});
    zeros += __builtin_popcountll(lanes ^ nonzero);
    count += append_lanes<T>(out + count, keys, nonzero);
  }
  return count;
}

// Appends those of the lanes in `lanes` that lie within [low, high].
template <class T>
inline int64_t append_between(Key<T>* out, Vec<Key<T>> keys, uint64_t lanes, Key<T> low, Key<T> high) {
  const uint64_t inside = lane_bits<T>((keys >= low) & (keys <= high)) & lanes;
  return inside == 0 ? 0 : append_lanes<T>(out, keys, inside);
}

struct Comparison {
  uint64_t greater;
  uint64_t equal;
};

template <class T>
inline Comparison compare_keys(const T* scores, Key<T> threshold) {
  Comparison result{0, 0};
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<Key<T>> keys = keys_of(scores + i);
    result.greater |= lane_bits<T>(keys > threshold) << i;
    result.equal |= lane_bits<T>(keys == threshold) << i;
  }
  return result;
}

}  // namespace
}  // namespace sparseprune
