// What a thread does with its rows, or its block of columns, of a SparseRows.
#pragma once

#include <sparseprune/sparse_rows.h>

#include "lane_sums.h"

namespace sparseprune {
namespace {

constexpr int64_t kPiece = 32;         // positions that a product sums at once
constexpr int64_t kRowsTogether = 64;  // rows that read a block of x while it is in the first cache

// Lanes for `width` positions: sixteen where the level has them, four for maps of 2x2.
template <class T>
constexpr int lanes_for(int64_t width) {
  return width == 4 ? 4 : width % 16 == 0 && kLanes<T> >= 16 ? 16 : 8;
}

template <class T>
inline const T* x_of(const SparseRows<T>& w, int64_t row, const T* x, int64_t width) {
  return x + row / w.group_rows() * w.row_cols * width;
}

template <class T>
inline T larger(T a, T b) {
  return a > b ? a : b;
}

// total += sum_p value[p] x[column[p]], of N vectors of positions.
template <class T, int L, int N>
inline void add_entries(const T* value, const uint16_t* column, int64_t count, const T* x, int64_t width,
                        Lanes<T, L>* total) {
  constexpr int U = N == 1 ? 4 : N == 2 ? 2 : 1;  // enough sums at once to hide the FMA's latency
  Lanes<T, L> sums[U][N];
  for (int u = 0; u < U; ++u)
    for (int v = 0; v < N; ++v) sums[u][v] = Lanes<T, L>{};
  const auto add = [&](int64_t p, int u) {
    const T* from = x + column[p] * width;
    for (int v = 0; v < N; ++v) {
      Lanes<T, L> line;
      get(line, from + v * L);
      sums[u][v] += value[p] * line;
    }
  };
  int64_t p = 0;
  for (; p + U <= count; p += U)
    for (int u = 0; u < U; ++u) add(p + u, u);
  for (; p < count; ++p) add(p, 0);
  for (int u = U / 2; u > 0; u /= 2)
    for (int i = 0; i < u; ++i)
      for (int v = 0; v < N; ++v) sums[i][v] += sums[i + u][v];
  for (int v = 0; v < N; ++v) total[v] += sums[0][v];
}

// Rows [first, last) of y, at L * N of its positions.
template <class T, int L, int N>
void sum_rows(const SparseRows<T>& w, int64_t first, int64_t last, const T* x, int64_t width, const T* scale, T* y) {
  for (int64_t from = first; from < last; from += kRowsTogether) {
    for (int64_t b = 0; b < w.blocks; ++b) {
      for (int64_t row = from; row < min_of(from + kRowsTogether, last); ++row) {
        const int32_t begin = w.starts[row * w.blocks + b], count = w.starts[row * w.blocks + b + 1] - begin;
        const bool opens = b == 0, closes = b == w.blocks - 1;
        if (count == 0 && !opens && !closes) continue;
        Lanes<T, L> total[N];
        for (int v = 0; v < N; ++v) {
          total[v] = Lanes<T, L>{};
          if (!opens) get(total[v], y + row * width + v * L);
        }
        add_entries<T, L, N>(w.values + begin, w.columns + begin, count, x_of(w, row, x, width), width, total);
        for (int v = 0; v < N; ++v) {
          if (closes && scale != nullptr) total[v] *= scale[row];
          put(y + row * width + v * L, total[v]);
        }
      }
    }
  }
}

template <class T>
void sum_rows_one(const SparseRows<T>& w, int64_t first, int64_t last, const T* x, const T* scale, T* y) {
  for (int64_t row = first; row < last; ++row) {
    const T* const from = x_of(w, row, x, 1);
    const int32_t end = w.starts[(row + 1) * w.blocks];
    T sums[4] = {};
    int32_t p = w.starts[row * w.blocks];
    for (; p + 4 <= end; p += 4)
      for (int u = 0; u < 4; ++u) sums[u] += w.values[p + u] * from[w.columns[p + u]];
    for (; p < end; ++p) sums[0] += w.values[p] * from[w.columns[p]];
    y[row] = ((sums[0] + sums[2]) + (sums[1] + sums[3])) * (scale == nullptr ? T{1} : scale[row]);
  }
}

template <class T>
void sum_piece(const SparseRows<T>& w, int64_t first, int64_t last, const T* x, int64_t width, int64_t piece,
               const T* scale, T* y) {
  constexpr int wide = lanes_for<T>(16);
  switch (piece) {
    case 32:
      return sum_rows<T, wide, 32 / wide>(w, first, last, x, width, scale, y);
    case 24:
      return sum_rows<T, 8, 3>(w, first, last, x, width, scale, y);
    case 16:
      return sum_rows<T, wide, 16 / wide>(w, first, last, x, width, scale, y);
    case 8:
      return sum_rows<T, 8, 1>(w, first, last, x, width, scale, y);
    case 4:
      return sum_rows<T, 4, 1>(w, first, last, x, width, scale, y);
    default:
      return sum_rows_one(w, first, last, x, scale, y);
  }
}

// Four entries of a row from p on, or `count` < 4 of them: sums over all vectors of positions, of which N are held in
// registers where N is not 0. The largest of the sums goes into `peak`.
template <class T, int L, int N, bool kInput>
inline void score_four(const SparseRows<T>& w, int32_t p, int count, const T* grad, const Lanes<T, L>* held, const T* x,
                       int64_t width, T* x_grad, T* scores, Lanes<T, 4>& peak) {
  int64_t at[4];
  T value[4] = {};
  for (int i = 0; i < count; ++i) {
    at[i] = w.columns[p + i] * width;
    value[i] = w.values[p + i];
  }
  Lanes<T, L> products[4] = {};
  for (int64_t v = 0; v < (N > 0 ? N : width / L); ++v) {
    Lanes<T, L> g;
    if constexpr (N > 0) {
      g = held[v];
    } else {
      get(g, grad + v * L);
    }
    for (int i = 0; i < count; ++i) {
      Lanes<T, L> line;
      get(line, x + at[i] + v * L);
      products[i] += g * line;
      if constexpr (kInput) {
        Lanes<T, L> down;
        get(down, x_grad + at[i] + v * L);
        put(x_grad + at[i] + v * L, down + value[i] * g);
      }
    }
  }
  Lanes<T, 4> sums, values;
  sum_four<T, L>(products, sums);
  get(values, value);
  peak = sums > peak ? sums : peak;
  values *= sums;
  std::memcpy(scores + p, &values, static_cast<size_t>(count) * sizeof(T));
}

// A block of all rows of a group.
template <class T, int L, int N, bool kInput>
void score_block(const SparseRows<T>& w, int64_t group, int64_t b, const T* grad, const T* x, int64_t width, T* x_grad,
                 T* scores, Lanes<T, 4>& peak) {
  const int64_t first = group * w.group_rows(), last = first + w.group_rows(), base = group * w.row_cols * width;
  const T* const from = x + base;
  T* const to = kInput ? x_grad + base : nullptr;
  for (int64_t row = first; row < last; ++row) {
    int32_t p = w.starts[row * w.blocks + b];
    const int32_t end = w.starts[row * w.blocks + b + 1];
    if (p == end) continue;
    const T* const up = grad + row * width;
    Lanes<T, L> held[N > 0 ? N : 1];
    for (int v = 0; v < N; ++v) get(held[v], up + v * L);
    for (; p + 4 <= end; p += 4) score_four<T, L, N, kInput>(w, p, 4, up, held, from, width, to, scores, peak);
    if (p < end) score_four<T, L, N, kInput>(w, p, end - p, up, held, from, width, to, scores, peak);
  }
}

template <class T>
void score_block_one(const SparseRows<T>& w, int64_t group, int64_t b, const T* grad, const T* x, T* x_grad,
                     T* scores, Lanes<T, 4>& peak) {
  const int64_t first = group * w.group_rows(), last = first + w.group_rows(), base = group * w.row_cols;
  for (int64_t row = first; row < last; ++row) {
    const T g = grad[row];
    for (int32_t p = w.starts[row * w.blocks + b]; p < w.starts[row * w.blocks + b + 1]; ++p) {
      const int64_t at = base + w.columns[p];
      const T part = w.values[p] * g;
      if (x_grad != nullptr) x_grad[at] += part;
      const T gradient = g * x[at];
      peak[0] = gradient > peak[0] ? gradient : peak[0];
      scores[p] = part * x[at];
    }
  }
}

template <class T, bool kInput>
void score_any(const SparseRows<T>& w, int64_t group, int64_t b, const T* grad, const T* x, int64_t width, T* x_grad,
               T* scores, Lanes<T, 4>& peak) {
  constexpr int wide = lanes_for<T>(16);
  const auto run = [&](auto lanes, auto count) {
    score_block<T, decltype(lanes)::value, decltype(count)::value, kInput>(w, group, b, grad, x, width, x_grad, scores,
                                                                            peak);
  };
  using std::integral_constant;
  constexpr integral_constant<int, wide> all;
  constexpr integral_constant<int, 8> eight;
  if (width == 4) return run(integral_constant<int, 4>{}, integral_constant<int, 1>{});
  if (width == 8) return run(eight, integral_constant<int, 1>{});
  if (width == 16) return run(all, integral_constant<int, 16 / wide>{});
  if (width == 32) return run(all, integral_constant<int, 32 / wide>{});
  if (width % 16 == 0) return run(all, integral_constant<int, 0>{});
  run(eight, integral_constant<int, 0>{});
}

}  // namespace
}  // namespace sparseprune
