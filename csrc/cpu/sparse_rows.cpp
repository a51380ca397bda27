#include <sparseprune/sparse_rows.h>

#include "row_products.h"
#include "scratch.h"

namespace sparseprune {
namespace {

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
