// The masked linear kernels for a batch of up to eight (the input gradient's for more): the weight is read once, with
// its bits, and never unpacked.
#pragma once

#include <sparseprune/weight.h>

#include "scratch.h"
#include "simd.h"

namespace sparseprune {
namespace {

// The values of a row's kept slots, in order; of `const T` to be read.
template <class T>
struct DenseRow {
  T* row;
  T& next(int64_t column) const { return row[column]; }
};
template <class T>
struct PackedRow {
  T* values;
  T& next(int64_t) { return *values++; }
};

// For each slab of words [first(slab), first(slab + 1)) of the rows, where a packed weight's values of it start:
// starts[slab * rows + row].
template <class T, class First>
void find_slabs(const Weight<const T>& weight, int64_t rows, int64_t row_words, int64_t slabs, const First& first,
                int64_t* starts, const Parallel& parallel) {
  for_ranges(parallel, rows, grain_of(8 * row_words), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t at = weight.start[row];
      for (int64_t slab = 0; slab < slabs; ++slab) {
        starts[slab * rows + row] = at;
        at += count_kept(weight.words + 2 * (row * row_words + first(slab)), first(slab + 1) - first(slab));
      }
    }
  });
}

constexpr int64_t kStreamBatch = 8;
// The same for the input gradient, whose lists would have to be transposed.
constexpr int64_t kStreamGradBatch = 32;

// Single slots are visited at low densities, else whole vectors: vectors of slots, or for slots one by one of samples.
template <class T, int NB>
inline bool visit_slots(const int32_t* words, int64_t rows, int64_t row_words, int64_t slots) {
  constexpr int64_t kInverseDensity = NB >= kLanes<T> ? 2 : 16;
  return count_kept(words, rows * row_words) * kInverseDensity < slots;
}

template <class T>
inline Vec<T> select(Vec<T> vector, uint64_t bits) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), (__m512)vector);
  } else {
    return (Vec<T>)_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), (__m512d)vector);
  }
#else
  return (Vec<T>)((Vec<Int<T> >)vector & expand_bits<T>(bits));
#endif
}

// The 64 values under a word, padded where the row ends before; `padded` holds 64 values.
template <class T>
inline const T* padded_word(const T* values, int64_t valid, T* padded) {
  if (valid >= 64) return values;
  std::memset(padded, 0, 64 * sizeof(T));
  std::memcpy(padded, values, static_cast<size_t>(valid) * sizeof(T));
  return padded;
}

// y[n][row] for NB samples; x: [NB][row_words * 64], zero-padded.
template <class T, int NB>
inline void stream_row(const T* weight, const int32_t* words, int64_t cols, const T* x, T* sums) {
  constexpr int A = NB >= 4 ? 1 : 4 / NB;  // at least four accumulators in flight
  const int64_t row_words = ceil_div(cols, 64), stride = 64 * row_words;
  Vec<T> acc[A][NB] = {};
  T padded[64];
  for (int64_t word = 0; word < row_words; ++word) {
    const uint64_t bits = load_bits(words, word);
    if (bits == 0) continue;
    const T* values = padded_word(weight + 64 * word, cols - 64 * word, padded);
    for (int i = 0; i < 64 / kLanes<T>; ++i) {
      const Vec<T> w = load_selected(values + i * kLanes<T>, bits >> (i * kLanes<T>));
      for (int n = 0; n < NB; ++n) acc[i % A][n] += w * load(x + n * stride + 64 * word + i * kLanes<T>);
    }
  }
  for (int n = 0; n < NB; ++n) {
    for (int a = 1; a < A; ++a) acc[0][n] += acc[a][n];
    sums[n] = sum_lanes<T>(acc[0][n]);
  }
}

// The same by single slots; x: [cols][NB].
template <class T, int NB, class Row>
inline void stream_row_slots(Row weight, const int32_t* words, int64_t cols, const T* x, T* sums) {
  T acc[2][NB] = {};
  for (int64_t word = 0; word < ceil_div(cols, 64); ++word) {
    for (uint64_t bits = load_bits(words, word); bits != 0; bits &= bits - 1) {
      const int64_t column = 64 * word + __builtin_ctzll(bits);
      const T w = weight.next(column);
      for (int n = 0; n < NB; ++n) acc[word & 1][n] += w * x[column * NB + n];
    }
  }
  for (int n = 0; n < NB; ++n) sums[n] = acc[0][n] + acc[1][n];
}

// Columns [64 * first, 64 * last) of dx for NB samples, from all rows; g: [rows][NB], dx: [NB][64 * (last -
// first)].
template <class T, int NB>
inline void stream_columns(const T* weight, const int32_t* words, int64_t rows, int64_t cols, int64_t first,
                           int64_t last, const T* g, T* dx) {
  constexpr int R = 4;  // rows at a time, so that dx is read and written once for four FMAs
  const int64_t row_words = ceil_div(cols, 64), stride = 64 * (last - first);
  T padded[R][64];
  for (int64_t row = 0; row < rows; row += R) {
    const int64_t valid_rows = min_of(R, rows - row);
    for (int64_t word = first; word < last; ++word) {
      uint64_t bits[R] = {}, any = 0;
      const T* values[R] = {padded[0], padded[0], padded[0], padded[0]};
      for (int64_t r = 0; r < valid_rows; ++r) {
        bits[r] = load_bits(words, (row + r) * row_words + word);
        any |= bits[r];
        values[r] = padded_word(weight + (row + r) * cols + 64 * word, cols - 64 * word, padded[r]);
      }
      if (any == 0) continue;
      for (int i = 0; i < 64; i += kLanes<T>) {
        Vec<T> w[R];
        for (int r = 0; r < R; ++r) w[r] = load_selected(values[r] + i, bits[r] >> i);
        for (int n = 0; n < NB; ++n) {
          T* to = dx + n * stride + 64 * (word - first) + i;
          Vec<T> acc = load(to);
          for (int r = 0; r < R; ++r) acc += w[r] * splat(g[(row + r) * NB + n]);
          store(to, acc);
        }
      }
    }
  }
}

// The same by single slots; weight(row): the values of a row's words from `first` on; dx: [64 * (last - first)][NB].
template <class T, int NB, class Rows>
inline void stream_columns_slots(const Rows& weight, const int32_t* words, int64_t rows, int64_t row_words,
                                 int64_t first, int64_t last, const T* g, T* dx) {
  for (int64_t row = 0; row < rows; ++row) {
    auto values = weight(row);
    for (int64_t word = first; word < last; ++word) {
      for (uint64_t bits = load_bits(words, row * row_words + word); bits != 0; bits &= bits - 1) {
        const int64_t column = 64 * word + __builtin_ctzll(bits);
        const T w = values.next(column);
        T* to = dx + (column - 64 * first) * NB;
        if constexpr (NB >= kLanes<T>) {
          for (int n = 0; n < NB; n += kLanes<T>) store(to + n, load(to + n) + splat(w) * load(g + row * NB + n));
        } else {
          for (int n = 0; n < NB; ++n) to[n] += w * g[row * NB + n];
        }
      }
    }
  }
}

// One row of dW; g: [NB], x: [NB][64 * row_words], out: [64 * row_words].
template <class T, int NB>
inline void stream_outer(const T* g, const T* x, const int32_t* words, int64_t row_words, T* out) {
  for (int64_t word = 0; word < row_words; ++word) {
    const uint64_t bits = load_bits(words, word);
    for (int i = 0; i < 64; i += kLanes<T>) {
      Vec<T> acc{};
      for (int n = 0; n < NB; ++n) acc += splat(g[n]) * load(x + (n * row_words + word) * 64 + i);
      store(out + 64 * word + i, select<T>(acc, bits >> i));
    }
  }
}

// The same by single slots; x: [cols][NB]. A dense row's other slots are left as they are.
template <class T, int NB, class Row>
inline void stream_outer_slots(const T* g, const T* x, const int32_t* words, int64_t row_words, Row out) {
  for (int64_t word = 0; word < row_words; ++word) {
    for (uint64_t bits = load_bits(words, word); bits != 0; bits &= bits - 1) {
      const int64_t column = 64 * word + __builtin_ctzll(bits);
      T sum = 0;
      for (int n = 0; n < NB; ++n) sum += g[n] * x[column * NB + n];
      out.next(column) = sum;
    }
  }
}

// f(std::integral_constant<int, NB>) with the smallest NB that holds `batch` <= `most` samples; the missing ones
// are zeros.
template <int64_t most, class F>
inline void with_batch(int64_t batch, const F& f) {
  if (batch <= 1) return f(std::integral_constant<int, 1>{});
  if (batch <= 2) return f(std::integral_constant<int, 2>{});
  if (batch <= 4) return f(std::integral_constant<int, 4>{});
  if (batch <= 8 || most == 8) return f(std::integral_constant<int, 8>{});
  if constexpr (most > 8) {
    if (batch <= 16) return f(std::integral_constant<int, 16>{});
    f(std::integral_constant<int, 32>{});
  }
}

}  // namespace
}  // namespace sparseprune
