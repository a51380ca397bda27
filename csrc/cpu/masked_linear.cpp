#include <sparseprune/masked_linear.h>

#include "linear_stream.h"
#include "panels.h"

namespace sparseprune {
namespace {

// matrix [batch, length] as [NB][padded length], or as [padded length][NB] where `by_column`; zeros
// elsewhere.
template <class T, int NB>
void spread(const T* matrix, int64_t batch, int64_t length, int64_t padded_length, bool by_column, T* out) {
  std::memset(out, 0, static_cast<size_t>(NB * padded_length) * sizeof(T));
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t i = 0; i < length; ++i)
      out[by_column ? i * NB + n : n * padded_length + i] = matrix[n * length + i];
  }
}

template <class T, int NB>
void stream_forward(const T* x, const T* weight, const int32_t* words, const T* bias, T* y,
                    const LinearSize& size, const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  const bool slots = visit_slots(words, size.out, row_words, size.out * size.in);
  Scratch<T> spread_x(NB * 64 * row_words);
  spread<T, NB>(x, size.batch, size.in, 64 * row_words, slots, spread_x.get());
  const int64_t grain = grain_of(64 * row_words * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, size.out, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const auto stream = slots ? stream_row_slots<T, NB> : stream_row<T, NB>;
      T sums[NB];
      stream(weight + row * size.in, words + 2 * row * row_words, size.in, spread_x.get(), sums);
      for (int64_t n = 0; n < size.batch; ++n)
        y[n * size.out + row] = sums[n] + (bias == nullptr ? T{0} : bias[row]);
    }
  });
}

template <class T, int NB>
void stream_input_grad(const T* grad, const T* weight, const int32_t* words, T* x_grad,
                       const LinearSize& size, const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  const bool slots = visit_slots(words, size.out, row_words, size.out * size.in);
  const int64_t padded_out = ceil_div(size.out, 4) * 4;  // stream_columns reads four rows at a time
  Scratch<T> g(NB * padded_out);
  spread<T, NB>(grad, size.batch, size.out, padded_out, true, g.get());
  // Slabs of columns whose dx stays in the L1 cache, and one a thread at least.
  const int64_t slab = max_of(1, min_of(16, ceil_div(row_words, parallel.threads)));
  const int64_t grain = grain_of(64 * slab * size.out * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, ceil_div(row_words, slab), grain, [&](int64_t begin, int64_t end) {
    Scratch<T> dx(NB * 64 * slab), part(NB * 64 * slab);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task * slab, last = min_of(first + slab, row_words), width = 64 * (last - first);
      std::memset(dx.get(), 0, static_cast<size_t>(NB * width) * sizeof(T));
      const auto stream = slots ? stream_columns_slots<T, NB> : stream_columns<T, NB>;
      for (int64_t row = 0; row < size.out; row += kSumBlock) {
        std::memset(part.get(), 0, static_cast<size_t>(NB * width) * sizeof(T));
        stream(weight + row * size.in, words + 2 * row * row_words, min_of(kSumBlock, size.out - row),
               size.in, first, last, g.get() + row * NB, part.get());
        for (int64_t i = 0; i < NB * width; ++i) dx[i] += part[i];
      }
      for (int64_t n = 0; n < size.batch; ++n) {
        for (int64_t i = 0; i < min_of(width, size.in - 64 * first); ++i) {
          x_grad[n * size.in + 64 * first + i] = dx[slots ? i * NB + n : n * width + i];
        }
      }
    }
  });
}

template <class T, int NB>
void stream_weight_grad(const T* grad, const T* x, const int32_t* words, T* weight_grad,
                        const LinearSize& size, const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  Scratch<T> spread_x(NB * 64 * row_words), g(NB * size.out);
  spread<T, NB>(x, size.batch, size.in, 64 * row_words, false, spread_x.get());
  spread<T, NB>(grad, size.batch, size.out, size.out, true, g.get());
  const int64_t grain = grain_of(64 * row_words * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, size.out, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      stream_outer<T, NB>(g.get() + row * NB, spread_x.get(), words + 2 * row * row_words, size.in,
                          weight_grad + row * size.in);
    }
  });
}

// out[n][i] = sum of list i's values times panels' columns, plus bias[i]: [columns, lists.count].
template <class T, int NV>
void multiply_panels(const Lists<T>& lists, const T* panels, int64_t length, int64_t columns, const T* bias,
                     T* out, const Parallel& parallel) {
  constexpr int64_t width = kPanel<T, NV>, block = 16;
  const int64_t count = ceil_div(columns, width);
  const int64_t parts =
      max_of(1, min_of(ceil_div(4 * parallel.threads, count), ceil_div(lists.count, block)));
  for_ranges(parallel, count * parts, 1, [&](int64_t begin, int64_t end) {
    alignas(64) T tile[block * width];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / parts, part = task % parts, valid = min_of(width, columns - panel * width);
      const int64_t stop = first_list(lists, part + 1, parts);
      for (int64_t list = first_list(lists, part, parts); list < stop; list += block) {
        const int64_t rows = min_of(block, stop - list);
        for (int64_t i = 0; i < rows; ++i) {
          multiply_list<T, NV>(lists, list + i, panels + panel * width * length, tile + i * width);
          if (bias == nullptr) continue;
          for (int64_t b = 0; b < width; ++b) tile[i * width + b] += bias[list + i];
        }
        transpose(tile, width, rows, valid, out + panel * width * lists.count + list, lists.count);
      }
    }
  });
}

// The sums of lists' slots over all panels, and from them the rows of dW.
template <class T, int NV>
void dot_panels(const Lists<T>& lists, const T* g_panels, const T* x_panels, const LinearSize& size,
                T* weight_grad, const Parallel& parallel) {
  const int64_t panels = ceil_div(size.batch, kPanel<T, NV>), parts = min_of(parallel.threads, size.out);
  Scratch<T> sums(lists.start[lists.count]);
  for_ranges(parallel, parts, 1, [&](int64_t begin, int64_t end) {
    const int64_t first = first_list(lists, begin, parts), last = first_list(lists, end, parts);
    const int64_t kept = lists.start[last] - lists.start[first];
    std::memset(sums.get() + lists.start[first], 0, static_cast<size_t>(kept) * sizeof(T));
    for (int64_t panel = 0; panel < panels; ++panel) {
      const T* g = g_panels + panel * kPanel<T, NV> * size.out;
      const T* x = x_panels + panel * kPanel<T, NV> * size.in;
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = lists.start[row];
        dot_list<T, NV>(lists.index + at, lists.start[row + 1] - at, 0, g + row * kPanel<T, NV>, x,
                        sums.get() + at);
      }
    }
    for (int64_t row = first; row < last; ++row) {
      T* out = weight_grad + row * size.in;
      std::memset(out, 0, static_cast<size_t>(size.in) * sizeof(T));
      for (int64_t at = lists.start[row]; at < lists.start[row + 1]; ++at) out[lists.index[at]] = sums[at];
    }
  });
}

}  // namespace

template <Isa isa, class T>
void masked_linear(const T* x, const T* weight, const int32_t* words, const T* bias, T* y,
                   const LinearSize& size, const Parallel& parallel) {
  if (size.batch <= kStreamBatch) {
    with_batch(size.batch, [&](auto nb) {
      stream_forward<T, decltype(nb)::value>(x, weight, words, bias, y, size, parallel);
    });
    return;
  }
  RowLists<T> rows(weight, words, size.out, size.in, parallel);
  with_panel<T>(min_of(size.batch, panel_width<T>(size.in)), [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    Scratch<T> panels(ceil_div(size.batch, kPanel<T, NV>) * kPanel<T, NV> * size.in);
    pack_panels<T, NV>(x, size.batch, size.in, panels.get(), parallel);
    multiply_panels<T, NV>(rows.lists(), panels.get(), size.in, size.batch, bias, y, parallel);
  });
}

template <Isa isa, class T>
void masked_linear_input_grad(const T* grad, const T* weight, const int32_t* words, T* x_grad,
                              const LinearSize& size, const Parallel& parallel) {
  if (size.batch <= kStreamBatch) {
    with_batch(size.batch, [&](auto nb) {
      stream_input_grad<T, decltype(nb)::value>(grad, weight, words, x_grad, size, parallel);
    });
    return;
  }
  ColumnLists<T> columns(weight, words, size.out, size.in, 1, parallel);
  with_panel<T>(min_of(size.batch, panel_width<T>(size.out)), [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    Scratch<T> panels(ceil_div(size.batch, kPanel<T, NV>) * kPanel<T, NV> * size.out);
    pack_panels<T, NV>(grad, size.batch, size.out, panels.get(), parallel);
    const T* no_bias = nullptr;
    multiply_panels<T, NV>(columns.lists(), panels.get(), size.out, size.batch, no_bias, x_grad, parallel);
  });
}

template <Isa isa, class T>
void masked_linear_weight_grad(const T* grad, const T* x, const int32_t* words, T* weight_grad,
                               const LinearSize& size, const Parallel& parallel) {
  if (size.in == 0 || size.out == 0) return;
  if (size.batch <= kStreamBatch) {
    with_batch(size.batch, [&](auto nb) {
      stream_weight_grad<T, decltype(nb)::value>(grad, x, words, weight_grad, size, parallel);
    });
    return;
  }
  const T* no_values = nullptr;
  RowLists<T> rows(no_values, words, size.out, size.in, parallel);
  with_panel<T>(min_of(size.batch, panel_width<T>(size.in)), [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    const int64_t padded = ceil_div(size.batch, kPanel<T, NV>) * kPanel<T, NV>;
    Scratch<T> x_panels(padded * size.in), g_panels(padded * size.out);
    pack_panels<T, NV>(x, size.batch, size.in, x_panels.get(), parallel);
    pack_panels<T, NV>(grad, size.batch, size.out, g_panels.get(), parallel);
    dot_panels<T, NV>(rows.lists(), g_panels.get(), x_panels.get(), size, weight_grad, parallel);
  });
}

#define SPARSEPRUNE_INSTANTIATE(T)                                                                      \
  template void masked_linear<Isa::SPARSEPRUNE_ISA>(const T*, const T*, const int32_t*, const T*, T*,   \
                                                    const LinearSize&, const Parallel&);                \
  template void masked_linear_input_grad<Isa::SPARSEPRUNE_ISA>(const T*, const T*, const int32_t*, T*,  \
                                                               const LinearSize&, const Parallel&);     \
  template void masked_linear_weight_grad<Isa::SPARSEPRUNE_ISA>(const T*, const T*, const int32_t*, T*, \
                                                                const LinearSize&, const Parallel&)
SPARSEPRUNE_INSTANTIATE(float);
SPARSEPRUNE_INSTANTIATE(double);
#undef SPARSEPRUNE_INSTANTIATE

}  // namespace sparseprune
