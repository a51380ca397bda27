// The masked linear kernels for a batch of up to eight (the input gradient's for more): the weight is read once, with
// its bits, and never unpacked.
#pragma once

#include <sparseprune/weight.h>

#include "survivors.h"

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

// Of functions that only prefetch: where GCC does not inline them, it takes them for calls without an effect.
#define SPARSEPRUNE_ASKS __attribute__((always_inline))

// The slots of words [first, last) of rows [begin, end), row by row; ask(row, index, kept) asks for a row's values before
// its turn, as no hardware prefetcher follows from one row's slots to the next row's.
template <class Ask>
class SlotsAhead {
 public:
  struct Slots {
    const int32_t* index;
    int64_t kept;
  };

  SlotsAhead(const int32_t* words, int64_t row_words, int64_t first, int64_t last, int64_t begin, int64_t end, Ask ask)
      : words_(words), row_words_(row_words), first_(first), last_(last), row_(begin), end_(end), ask_(ask) {
    for (Scratch<int32_t>& index : index_) index.allocate(64 * (last - first) + kSpare);
    for (int64_t row = begin; row < begin + kAhead; ++row) take(row);
  }
  // Of the row after the one before.
  Slots next() {
    take(row_ + kAhead);
    const int64_t slot = row_++ % (kAhead + 1);
    return {index_[slot].get(), kept_[slot]};
  }

 private:
  void take(int64_t row) {
    if (row >= end_) return;
    const int64_t slot = row % (kAhead + 1);
    int32_t* index = index_[slot].get();
    kept_[slot] = append_indices(words_ + 2 * (row * row_words_ + first_), 0, last_ - first_, index);
    ask_(row, index, kept_[slot]);
  }

  const int32_t* words_;
  int64_t row_words_, first_, last_, row_, end_;
  Ask ask_;
  Scratch<int32_t> index_[kAhead + 1];
  int64_t kept_[kAhead + 1];
};

constexpr int64_t kStreamBatch = 8;
// The same for the input gradient, whose lists would have to be transposed.
constexpr int64_t kStreamGradBatch = kVectorBytes == 64 ? 64 : 32;

// Is there an instruction that spreads values over the set lanes of a vector?
constexpr bool kExpands = kVectorBytes == 64;

// Single slots are visited at densities below 1 / these, else whole vectors.
struct SlotsBelow {
  int64_t dense, packed;
};

// Vectors of slots, or for slots one by one of samples.
template <class T, int NB>
inline bool visit_slots(const SlotsBelow& avx512, bool packed, const int32_t* words, int64_t rows,
                        int64_t row_words, int64_t slots) {
  if (packed && !kExpands) return true;
  const int64_t inverse_density = NB >= kLanes<T> ? 2 : !kExpands ? 16 : packed ? avx512.packed : avx512.dense;
  return count_kept(words, rows * row_words) * inverse_density < slots;
}

// A dense row's values, a vector of each word after the other, 0 at pruned slots.
template <class T>
struct DenseVectors {
  const T* row;
  int64_t cols, ahead;  // how many values before its turn a word is asked for
  const T* values;
  static constexpr bool kChained = false;

  // Where the row ends within the word its values are copied to `padded` [64].
  void start(int64_t word, T* padded) {
    values = row + 64 * word;
    // Loads under a mask do not start the hardware's prefetcher: one core then read 16 GB/s of 50 (Zen 5).
    prefetch_run(values + ahead, 64);
    const int64_t valid = cols - 64 * word;
    if (valid >= 64) return;
    std::memset(padded, 0, 64 * sizeof(T));
    std::memcpy(padded, values, static_cast<size_t>(valid) * sizeof(T));
    values = padded;
  }
  Vec<T> next(int lane, uint64_t bits) { return load_selected(values + lane, bits >> lane); }
};

// The same of a packed row, from its values on.
template <class T>
struct PackedVectors {
  const T* values;
  int64_t ahead;  // how many values before their turn some are asked for
  static constexpr bool kChained = true;

  void start(int64_t, T*) { prefetch_run(values + ahead, 32); }
  Vec<T> next([[maybe_unused]] int lane, [[maybe_unused]] uint64_t bits) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4) {
      const auto set = static_cast<__mmask16>(bits >> lane);
      const T* from = values;
      values += __builtin_popcount(set);
      return (Vec<T>)_mm512_maskz_expandloadu_ps(set, from);
    } else {
      const auto set = static_cast<__mmask8>(bits >> lane);
      const T* from = values;
      values += __builtin_popcount(set);
      return (Vec<T>)_mm512_maskz_expandloadu_pd(set, from);
    }
#else
    return Vec<T>{};  // visit_slots never asks for it
#endif
  }
};

// Rows that are read side by side, so that samples are read once for them; packed ones also because where a vector's
// values start is known only after the one before.
template <class Vectors, int NB>
constexpr int kRowsAtOnce = NB >= 8 ? (kVectorBytes == 64 ? 2 : 1) : Vectors::kChained ? 4 : 1;

// sums[r][n] += words [first, last) of row r times sample n, lane by lane; x: [vectors][NB], zero-padded.
template <class T, int NB, int R, class Vectors>
inline void stream_rows(Vectors* weight, const int32_t* words, int64_t row_words, int64_t first, int64_t last,
                        const T* x, Vec<T> (*sums)[NB]) {
  constexpr int A = R * NB >= 4 ? 1 : 4 / (R * NB);  // at least four accumulators in flight
  constexpr int L = kLanes<T>;
  Vec<T> acc[A][R][NB] = {};
  T padded[R][64];
  for (int64_t word = first; word < last; ++word) {
    uint64_t bits[R];
    for (int r = 0; r < R; ++r) bits[r] = load_bits(words, r * row_words + word);
    for (int r = 0; r < R; ++r) weight[r].start(word, padded[r]);
#pragma GCC unroll 32
    for (int i = 0; i < 64; i += L) {
      Vec<T> w[R];
      for (int r = 0; r < R; ++r) w[r] = weight[r].next(i, bits[r]);
      for (int n = 0; n < NB; ++n) {
        const Vec<T> sample = load(x + (64 * word + i) * NB + n * L);
        for (int r = 0; r < R; ++r) acc[i / L % A][r][n] += w[r] * sample;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < NB; ++n) {
      for (int a = 1; a < A; ++a) acc[0][r][n] += acc[a][r][n];
      sums[r][n] += acc[0][r][n];
    }
  }
}

// sums[n] = the slots `index` of a row times sample n; x: [cols][NB].
template <class T, int NB, class Row>
inline void stream_row_slots(Row values, const int32_t* index, int64_t kept, const T* x, T* sums) {
  T even[NB] = {}, odd[NB] = {};
  const auto add = [&](int64_t i, T* acc) {
    const T w = values.next(index[i]);
    for (int n = 0; n < NB; ++n) acc[n] += w * x[static_cast<int64_t>(index[i]) * NB + n];
  };
  int64_t i = 0;
  for (; i + 2 <= kept; i += 2) {
    add(i, even);
    add(i + 1, odd);
  }
  if (i < kept) add(i, even);
  for (int n = 0; n < NB; ++n) sums[n] = even[n] + odd[n];
}

// Columns [64 * first, 64 * last) of dx for NB samples, from R rows; g: [R][NB], dx: [vectors][NB].
template <class T, int NB, int R, class Vectors>
inline void stream_columns(Vectors* weight, const int32_t* words, int64_t row_words, int64_t first, int64_t last,
                           const T* g, T* dx) {
  T padded[R][64];
  for (int64_t word = first; word < last; ++word) {
    uint64_t bits[R];
    for (int r = 0; r < R; ++r) bits[r] = load_bits(words, r * row_words + word);
    for (int r = 0; r < R; ++r) weight[r].start(word, padded[r]);
    for (int i = 0; i < 64; i += kLanes<T>) {
      Vec<T> w[R];
      for (int r = 0; r < R; ++r) w[r] = weight[r].next(i, bits[r]);
      for (int n = 0; n < NB; ++n) {
        T* to = dx + (64 * (word - first) + i) * NB + n * kLanes<T>;
        Vec<T> acc = load(to);
        for (int r = 0; r < R; ++r) acc += w[r] * splat(g[r * NB + n]);
        store(to, acc);
      }
    }
  }
}

// The same by single slots; values: of the row, whose slots `index` counts from word `first` on; g: [NB],
// dx: [64 * (last - first)][NB].
template <class T, int NB, class Row>
inline void stream_columns_slots(Row values, const int32_t* index, int64_t kept, const T* g, T* dx) {
  for (int64_t i = 0; i < kept; ++i) {
    const T w = values.next(index[i]);
    T* to = dx + static_cast<int64_t>(index[i]) * NB;
    if constexpr (NB >= kLanes<T>) {
      for (int n = 0; n < NB; n += kLanes<T>) store(to + n, load(to + n) + splat(w) * load(g + n));
    } else {
      for (int n = 0; n < NB; ++n) to[n] += w * g[n];
    }
  }
}

// Words [first, last) of one row of dW; g: [NB], x: [vectors][NB]; write(lane, bits, vector) takes the values.
template <class T, int NB, class Write>
inline void stream_outer(const T* g, const T* x, const int32_t* words, int64_t first, int64_t last,
                         const Write& write) {
  for (int64_t word = first; word < last; ++word) {
    const uint64_t bits = load_bits(words, word);
    for (int i = 0; i < 64; i += kLanes<T>) {
      Vec<T> acc{};
      for (int n = 0; n < NB; ++n) acc += splat(g[n]) * load(x + (64 * word + i) * NB + n * kLanes<T>);
      write(64 * (word - first) + i, bits >> i, acc);
    }
  }
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

// Writes a whole vector of which the lanes whose bit is set come first, and returns how many those are.
template <class T>
inline int64_t compress([[maybe_unused]] Vec<T> vector, [[maybe_unused]] uint64_t bits, [[maybe_unused]] T* to) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    const auto set = static_cast<__mmask16>(bits);
    store(to, (Vec<T>)_mm512_maskz_compress_ps(set, (__m512)vector));
    return __builtin_popcount(set);
  } else {
    const auto set = static_cast<__mmask8>(bits);
    store(to, (Vec<T>)_mm512_maskz_compress_pd(set, (__m512d)vector));
    return __builtin_popcount(set);
  }
#else
  return 0;  // visit_slots never asks for it
#endif
}

// The same by single slots; x: [cols][NB]. A dense row's other slots are left as they are.
template <class T, int NB, class Row>
inline void stream_outer_slots(const T* g, const T* x, const int32_t* index, int64_t kept, Row out) {
  for (int64_t i = 0; i < kept; ++i) {
    T sum = 0;
    for (int n = 0; n < NB; ++n) sum += g[n] * x[static_cast<int64_t>(index[i]) * NB + n];
    out.next(index[i]) = sum;
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
    if (batch <= 32 || most == 32) return f(std::integral_constant<int, 32>{});
  }
  if constexpr (most > 32) {
    f(std::integral_constant<int, 64>{});
  }
}

}  // namespace
}  // namespace sparseprune
