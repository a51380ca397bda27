// The two products of a convolution over a tile.
#pragma once

#include "conv_lists.h"

namespace sparseprune {
namespace {

// f(std::integral_constant<int, n>) for n in [1, 8].
template <int most = 8, class F>
inline void with_count(int64_t n, const F& f) {
  if constexpr (most == 1) {
    f(std::integral_constant<int, 1>{});
  } else {
    if (n == most) return f(std::integral_constant<int, most>{});
    with_count<most - 1>(n, f);
  }
}

// total[v] += sum_p value[p] tile[offset[p] + v]
template <class T, int NV>
inline void add_survivors(const int32_t* offset, const T* value, int64_t count, const T* tile, Vec<T>* total) {
  constexpr int U = NV > 4 ? 1 : NV > 2 ? 2 : 8 / NV;  // enough sums at once to hide the FMA's latency
  for (int64_t p = 0; p < count;) {
    const int64_t end = min_of(p + kSumBlock, count);
    Vec<T> acc[U][NV] = {};
    for (; p + U <= end; p += U) {
      for (int u = 0; u < U; ++u) {
        const T* from = tile + offset[p + u];
        const Vec<T> factor = splat(value[p + u]);
        for (int v = 0; v < NV; ++v) acc[u][v] += factor * load(from + v * kLanes<T>);
      }
    }
    for (; p < end; ++p) {
      const T* from = tile + offset[p];
      for (int v = 0; v < NV; ++v) acc[0][v] += splat(value[p]) * load(from + v * kLanes<T>);
    }
    for (int half = U / 2; half > 0; half /= 2) {
      for (int u = 0; u < half; ++u) {
        for (int v = 0; v < NV; ++v) acc[u][v] += acc[u + half][v];
      }
    }
    for (int v = 0; v < NV; ++v) total[v] += acc[0][v];
  }
}

// products[i] = the lanes' sums of g[q] tile[offset[i] + q] over `vectors` vectors.
template <class T, int S>
inline void multiply_positions(const T* g, const T* tile, const int32_t* offset, int64_t vectors, Vec<T>* products) {
  const T* from[S];
  for (int i = 0; i < S; ++i) from[i] = tile + offset[i];
  Vec<T> acc[S] = {};
  for (int64_t q = 0; q < vectors * kLanes<T>; q += kLanes<T>) {
    const Vec<T> factor = load(g + q);
    for (int i = 0; i < S; ++i) acc[i] += factor * load(from[i] + q);
  }
  for (int i = 0; i < S; ++i) products[i] = acc[i];
}

// sums[p] += sum_q g[q] tile[offset[p] + q]
template <class T>
inline void dot_positions(const T* g, const T* tile, const int32_t* offset, int64_t count, int64_t vectors, T* sums) {
  constexpr int n = kLanes<T>;
  for (int64_t p = 0; p < count; p += 8) {
    Vec<T> products[n > 8 ? n : 8] = {};
    const int64_t some = min_of(8, count - p);
    with_count(some, [&](auto s) {
      multiply_positions<T, decltype(s)::value>(g, tile, offset + p, vectors, products);
    });
    T each[n > 8 ? n : 8];
    for (int64_t i = 0; i < some; i += n) store(each + i, sum_each<T>(products + i));
    for (int64_t i = 0; i < some; ++i) sums[p + i] += each[i];
  }
}

// sum_q g[q] tile[q] over the positions of runs, and none between them.
template <class T>
inline T dot_runs(const T* g, const T* tile, const Run* runs, int64_t count) {
  Vec<T> total = {};
  T rest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T *a = g + runs[i].position, *b = tile + runs[i].position;
    int64_t q = 0;
    for (; q + kLanes<T> <= runs[i].length; q += kLanes<T>) total += load(a + q) * load(b + q);
    for (; q < runs[i].length; ++q) rest += a[q] * b[q];
  }
  return sum_lanes<T>(total) + rest;
}

}  // namespace
}  // namespace sparseprune
