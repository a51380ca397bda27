#include <sparseprune/sparse_rows.h>

#include "lane_sums.h"
#include "scratch.h"

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

// The set bits of a row among its columns [begin, end).
inline int32_t count_between(const int32_t* words, int64_t first_word, int64_t begin, int64_t end) {
  int32_t count = 0;
  for (int64_t word = begin / 64; 64 * word < end; ++word) {
    uint64_t bits = load_bits(words, first_word + word) & low_bits(end - 64 * word);
    if (64 * word < begin) bits &= ~low_bits(begin - 64 * word);
    count += __builtin_popcountll(bits);
  }
  return count;
}

// Of 64 entries those whose bit is set.
template <class T>
inline int64_t take_entries(uint64_t bits, const uint16_t* columns, const T* values, uint16_t* to_columns,
                            T* to_values) {
  int64_t count = 0;
#if defined(__AVX512BW__)
  if constexpr (sizeof(T) == 4) {
    for (int i = 0; bits != 0; i += 16, bits >>= 16) {
      const auto set = static_cast<__mmask16>(bits);
      const int kept = __builtin_popcount(set);
      // Under masks: beyond `set` there may be no entry to read, and what follows may be another thread's to write.
      const auto low = static_cast<__mmask16>(low_bits(kept));
      const __m256i half = _mm256_maskz_loadu_epi16(set, columns + i);
      const __m512i column = _mm512_maskz_compress_epi32(set, _mm512_maskz_cvtepu16_epi32(set, half));
      _mm256_mask_storeu_epi16(to_columns + count, low, _mm512_maskz_cvtepi32_epi16(low, column));
      const __m512 value = _mm512_maskz_compress_ps(set, _mm512_maskz_loadu_ps(set, values + i));
      _mm512_mask_storeu_ps(to_values + count, low, value);
      count += kept;
    }
    return count;
  }
#endif
  for (; bits != 0; bits &= bits - 1, ++count) {
    const int i = __builtin_ctzll(bits);
    to_columns[count] = columns[i];
    to_values[count] = values[i];
  }
  return count;
}

}  // namespace

template <Isa isa, class T>
void pack_rows(const T* weight, const int32_t* words, int64_t height, int64_t row_cols, const NewRows<T>& out,
               const Parallel& parallel) {
  const int64_t row_words = ceil_div(row_cols, 64), grain = grain_of(row_cols * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, height, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t b = 0; b < out.blocks; ++b) {
        out.starts[row * out.blocks + b + 1] =
            count_between(words, row * row_words, block_start(row_cols, out.blocks, b),
                          block_start(row_cols, out.blocks, b + 1));
      }
    }
  });
  out.starts[0] = 0;
  for (int64_t i = 0; i < height * out.blocks; ++i) out.starts[i + 1] += out.starts[i];
  for_ranges(parallel, height, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t at = out.starts[row * out.blocks];
      for (int64_t word = 0; word < row_words; ++word) {
        const T* from = weight + row * row_cols + 64 * word;
        for (uint64_t bits = load_bits(words, row * row_words + word); bits != 0; bits &= bits - 1, ++at) {
          const int slot = __builtin_ctzll(bits);
          out.columns[at] = static_cast<uint16_t>(64 * word + slot);
          out.values[at] = from[slot];
        }
      }
    }
  });
}

template <Isa isa, class T>
void narrow_rows(const SparseRows<T>& rows, const int32_t* kept, const NewRows<T>& out, const Parallel& parallel) {
  const int64_t words = ceil_div(rows.entries(), 64), lists = rows.height * out.blocks;
  Scratch<int32_t> before(words + 1);  // the kept entries before each 64
  before[0] = 0;
  for (int64_t word = 0; word < words; ++word)
    before[word + 1] = before[word] + __builtin_popcountll(load_bits(kept, word));
  for_ranges(parallel, words, grain_of(64 * static_cast<int64_t>(sizeof(T))), [&](int64_t begin, int64_t end) {
    for (int64_t word = begin; word < end; ++word) {
      const int64_t at = before[word];
      take_entries(load_bits(kept, word), rows.columns + 64 * word, rows.values + 64 * word, out.columns + at,
                   out.values + at);
    }
  });
  const int64_t joined = rows.blocks / out.blocks;
  for (int64_t list = 0; list <= lists; ++list) {
    const int64_t i = rows.starts[list * joined];
    out.starts[list] =
        i % 64 == 0 ? before[i / 64] : before[i / 64] + __builtin_popcountll(load_bits(kept, i / 64) & low_bits(i % 64));
  }
}

template <Isa isa, class T>
void rows_product(const SparseRows<T>& rows, const T* x, int64_t width, const T* scale, T* y,
                  const Parallel& parallel) {
  // A range of rows a thread, with as many entries as the others.
  const int64_t work = (rows.entries() + 8 * rows.height) * max_of(width / 4, 1);
  const int64_t tasks = work < (1 << 14) ? 1 : min_of(parallel.threads, rows.height);
  const auto first_row = [&](int64_t task) {
    if (task == tasks) return rows.height;
    int64_t low = 0, high = rows.height;
    while (low < high) {
      const int64_t row = (low + high) / 2;
      if (rows.starts[row * rows.blocks] < rows.entries() * task / tasks) {
        low = row + 1;
      } else {
        high = row;
      }
    }
    return low;
  };
  for_ranges(parallel, tasks, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = begin == 0 ? 0 : first_row(begin), last = first_row(end);
    for (int64_t at = 0; at < width; at += kPiece)
      sum_piece(rows, first, last, x + at, width, min_of(kPiece, width - at), scale, y + at);
  });
}

template <Isa isa, class T>
T rows_gradients(const SparseRows<T>& rows, const T* grad, const T* x, int64_t width, const T* scale, T* x_grad,
                 T* scores, const Parallel& parallel) {
  Scratch<T> scaled(scale == nullptr ? 0 : rows.height * width);
  if (scale != nullptr) {
    for (int64_t row = 0; row < rows.height; ++row)
      for (int64_t u = 0; u < width; ++u) scaled[row * width + u] = scale[row] * grad[row * width + u];
    grad = scaled.get();
  }
  const int64_t tasks = rows.groups * rows.blocks;
  const int64_t work = (rows.entries() + rows.groups * rows.row_cols) * max_of(width / 4, 1);
  const int64_t grain = work < (1 << 14) ? tasks : 1;
  Scratch<T> peaks(tasks);
  for_ranges(parallel, tasks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      Lanes<T, 4> peak{};
      const int64_t group = task / rows.blocks, b = task % rows.blocks;
      if (x_grad != nullptr) {
        const int64_t first = block_start(rows.row_cols, rows.blocks, b);
        const int64_t count = block_start(rows.row_cols, rows.blocks, b + 1) - first;
        std::memset(x_grad + (group * rows.row_cols + first) * width, 0,
                    static_cast<size_t>(count * width) * sizeof(T));
      }
      if (width == 1) {
        score_block_one(rows, group, b, grad, x, x_grad, scores, peak);
      } else if (x_grad == nullptr) {
        score_any<T, false>(rows, group, b, grad, x, width, x_grad, scores, peak);
      } else {
        score_any<T, true>(rows, group, b, grad, x, width, x_grad, scores, peak);
      }
      peaks[task] = larger(larger(peak[0], peak[1]), larger(peak[2], peak[3]));
    }
  });
  T largest = 0;
  for (int64_t task = 0; task < tasks; ++task) largest = larger(largest, peaks[task]);
  return largest;
}

#define SPARSEPRUNE_INSTANTIATE(T)                                                                                   \
  template void pack_rows<Isa::SPARSEPRUNE_ISA>(const T*, const int32_t*, int64_t, int64_t, const NewRows<T>&,       \
                                                const Parallel&);                                                    \
  template void narrow_rows<Isa::SPARSEPRUNE_ISA>(const SparseRows<T>&, const int32_t*, const NewRows<T>&,           \
                                                  const Parallel&);                                                  \
  template void rows_product<Isa::SPARSEPRUNE_ISA>(const SparseRows<T>&, const T*, int64_t, const T*, T*,            \
                                                   const Parallel&);                                                 \
  template T rows_gradients<Isa::SPARSEPRUNE_ISA>(const SparseRows<T>&, const T*, const T*, int64_t, const T*, T*,   \
                                                  T*, const Parallel&)
SPARSEPRUNE_INSTANTIATE(float);
SPARSEPRUNE_INSTANTIATE(double);
#undef SPARSEPRUNE_INSTANTIATE

}  // namespace sparseprune
