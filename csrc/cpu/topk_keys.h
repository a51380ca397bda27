// Scores as integers that order the same way, 64 at a time.
#pragma once

#include "simd.h"

namespace sparseprune {
namespace {

// Signed keys: a larger score has a larger key, and both zeros have key 0.
template <class T>
using Key = Int<T>;

template <class T>
constexpr int kKeyBits = 8 * static_cast<int>(sizeof(T));
template <class T>
constexpr Key<T> kMagnitude = static_cast<Key<T>>(~(uint64_t{1} << (kKeyBits<T> - 1)));
// The key of inf. Those of numbers lie in [-kInfinity, kInfinity], those of NaN beyond.
template <class T>
constexpr Key<T> kInfinity = sizeof(T) == 4 ? static_cast<Key<T>>(0x7f800000)
                                            : static_cast<Key<T>>(0x7ffll << 52);

// For a negative score all bits but the sign are flipped; +1 lets -0.0 (flipped: -1) meet +0.0.
template <class T>
inline Vec<Key<T>> keys_of(const T* scores) {
  const Vec<Key<T>> bits = (Vec<Key<T>>)load(scores);
  const Vec<Key<T>> sign = bits >> (kKeyBits<T> - 1);
  return (bits ^ (sign & kMagnitude<T>)) - sign;
}
template <class T>
inline Key<T> key_of(T score) {
  Key<T> bits;
  std::memcpy(&bits, &score, sizeof(bits));
  const Key<T> sign = bits >> (kKeyBits<T> - 1);
  return (bits ^ (sign & kMagnitude<T>)) - sign;
}
template <class T>
inline T score_of(Key<T> key) {
  if (key < 0) key = (key - 1) ^ kMagnitude<T>;
  T score;
  std::memcpy(&score, &key, sizeof(score));
  return score;
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

}  // namespace
}  // namespace sparseprune
