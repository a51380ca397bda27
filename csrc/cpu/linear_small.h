// The masked linear layer's products for a small batch, as linear_stream.h has their inner loops.
#pragma once

#include <sparseprune/masked_linear.h>

#include "copy_out.h"
#include "linear_stream.h"

namespace sparseprune {
namespace {

// Where element i of sample n is among NB samples: beside element i of the others, or in a vector that is.
template <class T, int NB>
inline int64_t place(int64_t n, int64_t i, bool by_element) {
  constexpr int64_t lanes = kLanes<T>;
  return by_element ? i * NB + n : (i / lanes * NB + n) * lanes + i % lanes;
}

// matrix [batch, length] as that, zeros up to NB samples and the padded length.
template <class T, int NB>
void spread(const T* matrix, int64_t batch, int64_t length, int64_t padded_length, bool by_element, T* out) {
  std::memset(out, 0, static_cast<size_t>(NB * padded_length) * sizeof(T));
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t i = 0; i < length; ++i) out[place<T, NB>(n, i, by_element)] = matrix[n * length + i];
  }
}

// some(row, std::integral_constant<int, R>) over rows [begin, end), R at a time and the last one by one.
template <int R, class F>
void for_rows(int64_t begin, int64_t end, const F& some) {
  int64_t row = begin;
  for (; row + R <= end; row += R) some(row, std::integral_constant<int, R>{});
  for (; row < end; ++row) some(row, std::integral_constant<int, 1>{});
}

// Words of a row that are passed over before the next row's: NB samples of them stay in the L1 cache.
template <int NB>
constexpr int64_t kPieceWords = 64 / NB;

template <class T, int NB>
void stream_forward(const T* x, const Weight<const T>& weight, const T* bias, T* y, const LinearSize& size,
                    const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  constexpr SlotsBelow below = {32, NB == 8 ? 4 : 32};
  const bool slots = visit_slots<T, NB>(below, weight.packed(), weight.words, size.out, row_words, size.out * size.in);
  Scratch<T> spread_x(NB * 64 * row_words);
  spread<T, NB>(x, size.batch, size.in, 64 * row_words, slots, spread_x.get());
  const auto write = [&](int64_t row, const T* sums) {
    for (int64_t n = 0; n < size.batch; ++n) y[n * size.out + row] = sums[n] + (bias == nullptr ? T{0} : bias[row]);
  };
  const auto stream = [&](int64_t begin, int64_t end, auto vectors) {
    using Vectors = decltype(vectors(0));
    constexpr int R = kRowsAtOnce<Vectors, NB>;
    constexpr int64_t most = 16, piece = kPieceWords<NB>;
    Vectors values[most];
    Vec<T> sums[most][NB];
    for (int64_t row = begin; row < end; row += most) {
      const int64_t rows = min_of(most, end - row);
      for (int64_t r = 0; r < rows; ++r) values[r] = vectors(row + r);
      std::memset(sums, 0, sizeof(sums));
      for (int64_t first = 0; first < row_words; first += piece) {
        for_rows<R>(0, rows, [&](int64_t r, auto some) {
          const int32_t* words = weight.words + 2 * (row + r) * row_words;
          stream_rows<T, NB, decltype(some)::value>(values + r, words, row_words, first,
                                                    min_of(first + piece, row_words), spread_x.get(), sums + r);
        });
      }
      for (int64_t r = 0; r < rows; ++r) {
        T sum[NB];
        for (int n = 0; n < NB; ++n) sum[n] = sum_lanes<T>(sums[r][n]);
        write(row + r, sum);
      }
    }
  };
  const int64_t grain = grain_of(64 * row_words * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, size.out, grain, [&](int64_t begin, int64_t end) {
    if (!slots && weight.packed()) {
      return stream(begin, end, [&](int64_t row) {
        const int64_t ahead = weight.start[min_of(row + kRowsAtOnce<PackedVectors<T>, NB>, size.out)] - weight.start[row];
        return PackedVectors<T>{weight.values + weight.start[row], ahead};
      });
    }
    if (!slots) {
      const int64_t ahead = kPieceWords<NB> < row_words ? 4 * size.in : 8192 / sizeof(T);
      return stream(begin, end, [&](int64_t row) {
        return DenseVectors<T>{weight.values + row * size.in, size.in, ahead, nullptr};
      });
    }
    SlotsAhead slots_of(weight.words, row_words, 0, row_words, begin, end,
                        [&](int64_t row, const int32_t* index, int64_t kept) SPARSEPRUNE_ASKS {
                          if (weight.packed()) return;  // which lie one row after the other
                          const T* values = weight.values + row * size.in;
                          for (int64_t i = 0; i < kept; ++i) __builtin_prefetch(values + index[i]);
                        });
    for (int64_t row = begin; row < end; ++row) {
      const auto [index, kept] = slots_of.next();
      T sums[NB];
      if (weight.packed()) {
        const PackedRow<const T> values{weight.values + weight.start[row]};
        stream_row_slots<T, NB>(values, index, kept, spread_x.get(), sums);
      } else {
        const DenseRow<const T> values{weight.values + row * size.in};
        stream_row_slots<T, NB>(values, index, kept, spread_x.get(), sums);
      }
      write(row, sums);
    }
  });
}

template <class T, int NB>
void stream_input_grad(const T* grad, const Weight<const T>& weight, T* x_grad, const LinearSize& size,
                       const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  constexpr SlotsBelow below = {48, 32};
  const bool slots = visit_slots<T, NB>(below, weight.packed(), weight.words, size.out, row_words, size.out * size.in);
  Scratch<T> g(NB * size.out);
  spread<T, NB>(grad, size.batch, size.out, size.out, true, g.get());
  // Slabs of columns whose dx stays in the L1 cache, and one a thread at least.
  const int64_t slab = max_of(1, min_of(16, ceil_div(row_words, parallel.threads)));
  const int64_t slabs = ceil_div(row_words, slab);
  Scratch<int64_t> starts(weight.packed() ? slabs * size.out : 0);
  if (weight.packed()) {
    const auto first_word = [&](int64_t task) { return min_of(task * slab, row_words); };
    find_slabs(weight, size.out, row_words, slabs, first_word, starts.get(), parallel);
  }
  const int64_t grain = grain_of(64 * slab * size.out * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, slabs, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> dx(NB * 64 * slab), part(NB * 64 * slab);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * slab, last = min_of(first + slab, row_words), width = 64 * (last - first);
      const int64_t* start = starts.get() + task * size.out;
      std::memset(dx.get(), 0, static_cast<size_t>(NB * width) * sizeof(T));
      // No hardware prefetcher follows one row's piece to the next row's.
      const auto prefetch_packed = [&](int64_t row) SPARSEPRUNE_ASKS {
        if (row >= size.out) return;
        const int64_t end = task + 1 < slabs ? start[size.out + row] : weight.start[row + 1];
        prefetch_run(weight.values + start[row], end - start[row]);
      };
      SlotsAhead slots_of(weight.words, row_words, first, last, 0, slots ? size.out : 0,
                          [&](int64_t row, const int32_t* index, int64_t kept) SPARSEPRUNE_ASKS {
                            if (weight.packed()) return prefetch_packed(row);
                            const T* values = weight.values + row * size.in + 64 * first;
                            for (int64_t i = 0; i < kept; ++i) __builtin_prefetch(values + index[i]);
                          });
      const auto some = [&](int64_t row, auto rows) {
        constexpr int R = decltype(rows)::value;
        const int32_t* words = weight.words + 2 * row * row_words;
        if (weight.packed()) {
          PackedVectors<T> values[R];
          for (int r = 0; r < R; ++r) {
            values[r] = {weight.values + start[row + r], 0};
            prefetch_packed(row + R + r);
          }
          stream_columns<T, NB, R>(values, words, row_words, first, last, g.get() + row * NB, part.get());
        } else {
          DenseVectors<T> values[R];
          for (int r = 0; r < R; ++r) values[r] = {weight.values + (row + r) * size.in, size.in, R * size.in, nullptr};
          stream_columns<T, NB, R>(values, words, row_words, first, last, g.get() + row * NB, part.get());
        }
      };
      for (int64_t row = 0; row < size.out; row += kSumBlock) {
        std::memset(part.get(), 0, static_cast<size_t>(NB * width) * sizeof(T));
        const int64_t rows = min_of(row + kSumBlock, size.out);
        if (!slots) for_rows<4>(row, rows, some);  // dx is read and written once for four FMAs
        for (int64_t r = row; slots && r < rows; ++r) {
          const auto [index, kept] = slots_of.next();
          const T* g_row = g.get() + r * NB;
          if (weight.packed()) {
            const PackedRow<const T> values{weight.values + start[r]};
            stream_columns_slots<T, NB>(values, index, kept, g_row, part.get());
          } else {
            const DenseRow<const T> values{weight.values + r * size.in + 64 * first};
            stream_columns_slots<T, NB>(values, index, kept, g_row, part.get());
          }
        }
        for (int64_t i = 0; i < NB * width; ++i) dx[i] += part[i];
      }
      for (int64_t n = 0; n < size.batch; ++n) {
        for (int64_t i = 0; i < min_of(width, size.in - 64 * first); ++i) {
          x_grad[n * size.in + 64 * first + i] = dx[place<T, NB>(n, i, slots)];
        }
      }
    }
  });
}

template <class T, int NB>
void stream_weight_grad(const T* grad, const T* x, const Weight<T>& weight_grad, const LinearSize& size,
                        const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  // Slot by slot a sum over samples costs as much as a vector of slots does, also where samples fill vectors.
  constexpr SlotsBelow below = {NB == 8 ? 128 : 1024, NB == 8 ? 16 : 8};
  const bool slots =
      visit_slots<T, 1>(below, weight_grad.packed(), weight_grad.words, size.out, row_words, size.out * size.in);
  Scratch<T> spread_x(NB * 64 * row_words), g(NB * size.out);
  spread<T, NB>(x, size.batch, size.in, 64 * row_words, slots, spread_x.get());
  spread<T, NB>(grad, size.batch, size.out, size.out, true, g.get());
  const bool past_caches = is_past_caches<T>(size.out * size.in);
  const int64_t grain = grain_of(64 * row_words * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, size.out, grain, [&](int64_t begin, int64_t end) {
    if (!slots) {
      constexpr int64_t piece = kPieceWords<NB>;
      T line[64 * piece + kLanes<T>];  // of which compress may write a vector too many
      Scratch<int64_t> next(weight_grad.packed() ? end - begin : 0);
      if (weight_grad.packed()) std::memcpy(next.get(), weight_grad.start + begin, (end - begin) * sizeof(int64_t));
      for (int64_t first = 0; first < row_words; first += piece) {
        const int64_t last = min_of(first + piece, row_words), cols = min_of(64 * last, size.in) - 64 * first;
        for (int64_t row = begin; row < end; ++row) {
          const auto stream = [&](const auto& write) {
            const int32_t* words = weight_grad.words + 2 * row * row_words;
            stream_outer<T, NB>(g.get() + row * NB, spread_x.get(), words, first, last, write);
          };
          if (weight_grad.packed()) {
            int64_t kept = 0;
            if (row + kAhead < end) __builtin_prefetch(weight_grad.values + next[row + kAhead - begin], 1);
            stream([&](int64_t, uint64_t bits, Vec<T> vector) { kept += compress(vector, bits, line + kept); });
            std::memcpy(weight_grad.values + next[row - begin], line, static_cast<size_t>(kept) * sizeof(T));
            next[row - begin] += kept;
          } else {
            stream([&](int64_t lane, uint64_t bits, Vec<T> vector) { store(line + lane, select<T>(vector, bits)); });
            copy_out(line, weight_grad.values + row * size.in + 64 * first, cols, past_caches);
          }
        }
      }
      return copied_out();
    }
    Scratch<T> line(weight_grad.packed() ? 0 : size.in);
    Scratch<int32_t> index(64 * row_words + kSpare);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t kept = append_indices(weight_grad.words + 2 * row * row_words, 0, row_words, index.get());
      const T* g_row = g.get() + row * NB;
      if (weight_grad.packed()) {
        const PackedRow<T> values{weight_grad.values + weight_grad.start[row]};
        stream_outer_slots<T, NB>(g_row, spread_x.get(), index.get(), kept, values);
      } else {
        std::memset(line.get(), 0, static_cast<size_t>(size.in) * sizeof(T));
        stream_outer_slots<T, NB>(g_row, spread_x.get(), index.get(), kept, DenseRow<T>{line.get()});
        copy_out(line.get(), weight_grad.values + row * size.in, size.in, past_caches);
      }
    }
    copied_out();
  });
}

}  // namespace
}  // namespace sparseprune
