// Vectors of a number of lanes that the caller chooses, also of fewer or more than the level's, and their sums.
//
// By reference: how a vector wider than the level's is returned is no fixed convention.
#pragma once

#include <cstring>
#include <utility>

#include "common.h"
#include "simd.h"

namespace sparseprune {
namespace {

template <class T, int N>
struct LanesOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Lanes = typename LanesOf<T, N>::type;

template <class V, class T>
inline void get(V& lanes, const T* from) {
  std::memcpy(&lanes, from, sizeof(lanes));
}
template <class V, class T>
inline void put(T* to, const V& lanes) {
  std::memcpy(to, &lanes, sizeof(lanes));
}

// The sum of the groups of four lanes.
template <class T, int N>
inline void sum_groups(const Lanes<T, N>& groups, Lanes<T, 4>& out) {
  if constexpr (N == 4) {
    out = groups;
  } else {
    Lanes<T, N / 2> low, high;
    std::memcpy(&low, &groups, sizeof(low));
    std::memcpy(&high, reinterpret_cast<const char*>(&groups) + sizeof(low), sizeof(high));
    sum_groups<T, N / 2>(low + high, out);
  }
}

// In each group of four lanes those numbered i..., of a and, from 4 on, of b.
template <class T, int N, int... i, int... lane>
inline void take(const Lanes<T, N>& a, const Lanes<T, N>& b, std::integer_sequence<int, i...>,
                 std::integer_sequence<int, lane...>, Lanes<T, N>& out) {
  constexpr int from[4] = {i...};
#if defined(__clang__) || __GNUC__ >= 12
  out = __builtin_shufflevector(a, b, (from[lane % 4] < 4 ? from[lane % 4] : from[lane % 4] + N - 4) + lane / 4 * 4 ...);
#else
  out = __builtin_shuffle(a, b, Lanes<Int<T>, N>{(from[lane % 4] < 4 ? from[lane % 4] : from[lane % 4] + N - 4) + lane / 4 * 4 ...});
#endif
}

// The sums of the lanes of four vectors.
template <class T, int N>
inline void sum_four(const Lanes<T, N>* vectors, Lanes<T, 4>& out) {
  constexpr auto all = std::make_integer_sequence<int, N>{};
  const auto halves = [&](const Lanes<T, N>& a, const Lanes<T, N>& b, auto low_lanes, auto high_lanes, Lanes<T, N>& sum) {
    Lanes<T, N> low, high;
    take<T, N>(a, b, low_lanes, all, low);
    take<T, N>(a, b, high_lanes, all, high);
    sum = low + high;
  };
  using Low = std::integer_sequence<int, 0, 4, 1, 5>;
  using High = std::integer_sequence<int, 2, 6, 3, 7>;
  Lanes<T, N> first, second, groups;
  halves(vectors[0], vectors[1], Low{}, High{}, first);
  halves(vectors[2], vectors[3], Low{}, High{}, second);
  halves(first, second, std::integer_sequence<int, 0, 1, 4, 5>{}, std::integer_sequence<int, 2, 3, 6, 7>{}, groups);
  sum_groups<T, N>(groups, out);
}

}  // namespace
}  // namespace sparseprune
