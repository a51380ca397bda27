// Panels: [K][lanes] copies of some columns of a matrix, and the two sparse products over them.
//
//   add_list           total[b] += sum_p value[p] panel[index[p]][b]        (SpMM, one output row)
//   dot_list           sums[p] += sum_b g[b] panel[index[p] - first][b]     (SDDMM, one row of survivors)
//
// A panel row is NV vectors; every survivor costs NV FMAs whose second operand is a load from the panel,
// which should therefore stay in the L2 cache.
#pragma once

#include <utility>

#include "simd.h"
#include "survivors.h"

namespace sparseprune {
namespace {

template <class T, int NV>
constexpr int kPanel = NV * kLanes<T>;

// The second operand's lanes follow the first's.
template <class T, int... indices>
inline Vec<T> shuffle(Vec<T> a, Vec<T> b, std::integer_sequence<int, indices...>) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, indices...);
#else
  return __builtin_shuffle(a, b, Vec<Int<T>>{indices...});
#endif
}

// Lane i of the result: the sum of lanes i and i ^ distance, of a where bit `distance` of i is clear, else of
// b.
template <class T, int distance, int... i>
inline Vec<T> fold(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  constexpr int n = kLanes<T>;
  // The first of these is a blend, which does not wait for the units that move lanes.
  const Vec<T> own = shuffle<T>(a, b, std::integer_sequence<int, ((i & distance) ? n + i : i)...>{});
  const Vec<T> other =
      shuffle<T>(a, b, std::integer_sequence<int, ((i & distance) ? n + i - distance : i + distance)...>{});
  return own + other;
}

// Lane i of the result: the sum of the lanes of vector i.
template <class T, int distance = 1>
inline Vec<T> sum_each(Vec<T>* vectors) {
  if constexpr (distance == kLanes<T>) {
    return vectors[0];
  } else {
    for (int i = 0; i < kLanes<T> / distance / 2; ++i) {
      vectors[i] =
          fold<T, distance>(vectors[2 * i], vectors[2 * i + 1], std::make_integer_sequence<int, kLanes<T>>{});
    }
    return sum_each<T, 2 * distance>(vectors);
  }
}

// A float32 sum of thousands of terms one by one loses several bits more than a vendor's GEMM, which adds up
// in blocks.
constexpr int64_t kSumBlock = 256;

template <class T, int NV>
inline void add_list(const Lists<T>& lists, int64_t list, const T* panel, Vec<T>* total) {
  constexpr int U = 8 / NV;  // eight accumulators hide the FMA's latency
  const int32_t* index = lists.index + lists.start[list];
  const T* value = lists.value + lists.start[list];
  const int64_t count = lists.start[list + 1] - lists.start[list];
  for (int64_t p = 0; p < count;) {
    const int64_t end = min_of(p + kSumBlock, count);
    Vec<T> acc[U][NV] = {};
    for (; p + U <= end; p += U) {
      for (int u = 0; u < U; ++u) {
        const T* row = panel + static_cast<int64_t>(index[p + u]) * kPanel<T, NV>;
        const Vec<T> factor = splat(value[p + u]);
        for (int v = 0; v < NV; ++v) acc[u][v] += factor * load(row + v * kLanes<T>);
      }
    }
    for (; p < end; ++p) {
      const T* row = panel + static_cast<int64_t>(index[p]) * kPanel<T, NV>;
      for (int v = 0; v < NV; ++v) acc[0][v] += splat(value[p]) * load(row + v * kLanes<T>);
    }
    for (int half = U / 2; half > 0; half /= 2) {
      for (int u = 0; u < half; ++u) {
        for (int v = 0; v < NV; ++v) acc[u][v] += acc[u + half][v];
      }
    }
    for (int v = 0; v < NV; ++v) total[v] += acc[0][v];
  }
}

template <class T, int NV>
inline void dot_list(const int32_t* index, int64_t count, int64_t first, const T* gradient, const T* panel,
                     T* sums) {
  Vec<T> g[NV];
  for (int v = 0; v < NV; ++v) g[v] = load(gradient + v * kLanes<T>);
  const auto product = [&](int64_t p) {
    const T* row = panel + (index[p] - first) * kPanel<T, NV>;
    Vec<T> acc = g[0] * load(row);
    for (int v = 1; v < NV; ++v) acc += g[v] * load(row + v * kLanes<T>);
    return acc;
  };
  int64_t p = 0;
  Vec<T> products[kLanes<T>];
  for (; p + kLanes<T> <= count; p += kLanes<T>) {
    for (int i = 0; i < kLanes<T>; ++i) products[i] = product(p + i);
    store(sums + p, load(sums + p) + sum_each<T>(products));
  }
  if (p == count) return;
  // The rest in the same way: a sum's bits must not depend on where in a list its survivor stands.
  for (int i = 0; i < kLanes<T>; ++i) products[i] = p + i < count ? product(p + i) : Vec<T>{};
  T last[kLanes<T>];
  store(last, sum_each<T>(products));
  for (int i = 0; p < count; ++i, ++p) sums[p] += last[i];
}

// Exchanges lane j of vector i with lane i of vector j.
template <class T, int distance = 1, int... lane>
inline void transpose_square(Vec<T>* rows, std::integer_sequence<int, lane...> lanes) {
  constexpr int n = kLanes<T>;
  if constexpr (distance < n) {
    for (int i = 0; i < n; ++i) {
      if (i & distance) continue;
      const Vec<T> a = rows[i], b = rows[i + distance];
      rows[i] = shuffle<T>(a, b, std::integer_sequence<int, ((lane & distance) ? n + lane - distance : lane)...>{});
      rows[i + distance] =
          shuffle<T>(a, b, std::integer_sequence<int, ((lane & distance) ? n + lane : lane + distance)...>{});
    }
    transpose_square<T, 2 * distance>(rows, lanes);
  }
}

// out[c][r] = in[r][c], by squares of whole vectors.
template <class T>
inline void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t cols, T* out, int64_t out_stride) {
  constexpr int64_t n = kLanes<T>;
  const int64_t square_rows = rows / n * n, square_cols = cols / n * n;
  for (int64_t r = 0; r < square_rows; r += n) {
    for (int64_t c = 0; c < square_cols; c += n) {
      Vec<T> square[n];
      for (int64_t i = 0; i < n; ++i) square[i] = load(in + (r + i) * in_stride + c);
      transpose_square<T>(square, std::make_integer_sequence<int, n>{});
      for (int64_t i = 0; i < n; ++i) store(out + (c + i) * out_stride + r, square[i]);
    }
    for (int64_t c = square_cols; c < cols; ++c) {
      for (int64_t i = 0; i < n; ++i) out[c * out_stride + r + i] = in[(r + i) * in_stride + c];
    }
  }
  for (int64_t r = square_rows; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

// All panels of a row-major matrix [batch, length]: panel q is [length][kPanel], zero beyond the batch.
template <class T, int NV>
void pack_panels(const T* matrix, int64_t batch, int64_t length, T* panels, const Parallel& parallel) {
  constexpr int64_t width = kPanel<T, NV>, block = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t blocks = ceil_div(length, block), tasks = ceil_div(batch, width) * blocks;
  for_ranges(parallel, tasks, grain_of(64 * width), [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task / blocks * width, column = task % blocks * block;
      const int64_t rows = min_of(width, batch - first), cols = min_of(block, length - column);
      T* out = panels + first * length + column * width;
      transpose(matrix + first * length + column, length, rows, cols, out, width);
      if (rows == width) continue;
      for (int64_t c = 0; c < cols; ++c) {
        std::memset(out + c * width + rows, 0, static_cast<size_t>(width - rows) * sizeof(T));
      }
    }
  });
}

// Panels above this stay in no core's L2 cache.
constexpr int64_t kPanelBytes = 1 << 20;

// f(std::integral_constant<int, NV>) with the vectors of a panel row that hold `columns` columns, or all
// four.
template <class T, class F>
inline void with_panel(int64_t columns, const F& f) {
  if (columns <= kLanes<T>) return f(std::integral_constant<int, 1>{});
  if (columns <= 2 * kLanes<T>) return f(std::integral_constant<int, 2>{});
  f(std::integral_constant<int, 4>{});
}

}  // namespace
}  // namespace sparseprune
