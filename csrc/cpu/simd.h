// Vectors of the level that the file is compiled for, by the compiler's vector types; a + b * c becomes one
// FMA.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace sparseprune {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// The signed integer as wide as T.
template <class T>
struct IntOf;
template <>
struct IntOf<float> {
  using type = int32_t;
};
template <>
struct IntOf<double> {
  using type = int64_t;
};
template <class T>
using Int = typename IntOf<T>::type;

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}
template <class T>
inline void store(T* to, Vec<T> vector) {
  std::memcpy(to, &vector, sizeof(vector));
}
template <class T>
inline Vec<T> splat(T value) {
  return value - Vec<T>{};  // which the compiler leaves out; it must not leave out adding 0, to which -0 is not alike
}

// Asks for values that will be read.
template <class T>
inline void prefetch_run(const T* from, int64_t length) {
  for (int64_t i = 0; i < length; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(from + i);
}

// The sum of all lanes, by halves: the same order at every call.
template <class T>
inline T sum_lanes(Vec<T> vector) {
  T lanes[kLanes<T>];
  store(lanes, vector);
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// Lane i is all ones where bit i of bits is set.
template <class T>
inline Vec<Int<T>> expand_bits(uint64_t bits) {
  Vec<Int<T>> powers;
  for (int i = 0; i < kLanes<T>; ++i) powers[i] = Int<T>{1} << i;
  const Vec<Int<T>> copies = splat(static_cast<Int<T>>(bits));
  return (copies & powers) != Vec<Int<T>>{};
}

// The lanes of `from` whose bit is set, and 0 in the others, whatever they hold.
template <class T>
inline Vec<T> load_selected(const T* from, uint64_t bits) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>(bits), from);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(bits), from);
  }
#else
  return (Vec<T>)((Vec<Int<T>>)load(from) & expand_bits<T>(bits));
#endif
}

// Bit i is set where lane i of a comparison's result is all ones.
template <class T>
inline uint64_t lane_bits(Vec<Int<T>> mask) {
#if defined(__AVX512DQ__)
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)mask);
  if constexpr (sizeof(T) == 8) return _mm512_movepi64_mask((__m512i)mask);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
  if constexpr (sizeof(T) == 8) return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)mask));
#else
  uint64_t bits = 0;
  for (int i = 0; i < kLanes<T>; ++i) bits |= static_cast<uint64_t>(mask[i] & 1) << i;
  return bits;
#endif
}

}  // namespace
}  // namespace sparseprune
