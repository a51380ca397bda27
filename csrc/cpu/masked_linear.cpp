#include <sparseprune/masked_linear.h>

#include "block_lists.h"
#include "copy_out.h"
#include "linear_stream.h"

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
void stream_forward(const T* x, const Weight<const T>& weight, const T* bias, T* y, const LinearSize& size,
                    const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  const bool slots = weight.packed() || visit_slots<T, NB>(weight.words, size.out, row_words, size.out * size.in);
  Scratch<T> spread_x(NB * 64 * row_words);
  spread<T, NB>(x, size.batch, size.in, 64 * row_words, slots, spread_x.get());
  const int64_t grain = grain_of(64 * row_words * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, size.out, grain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* words = weight.words + 2 * row * row_words;
      const T* dense = weight.values + row * size.in;
      T sums[NB];
      if (weight.packed()) {
        const PackedRow<const T> values{weight.values + weight.start[row]};
        stream_row_slots<T, NB>(values, words, size.in, spread_x.get(), sums);
      } else if (slots) {
        stream_row_slots<T, NB>(DenseRow<const T>{dense}, words, size.in, spread_x.get(), sums);
      } else {
        stream_row<T, NB>(dense, words, size.in, spread_x.get(), sums);
      }
      for (int64_t n = 0; n < size.batch; ++n)
        y[n * size.out + row] = sums[n] + (bias == nullptr ? T{0} : bias[row]);
    }
  });
}

template <class T, int NB>
void stream_input_grad(const T* grad, const Weight<const T>& weight, T* x_grad, const LinearSize& size,
                       const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  const bool slots = weight.packed() || visit_slots<T, NB>(weight.words, size.out, row_words, size.out * size.in);
  const int64_t padded_out = ceil_div(size.out, 4) * 4;  // stream_columns reads four rows at a time
  Scratch<T> g(NB * padded_out);
  spread<T, NB>(grad, size.batch, size.out, padded_out, true, g.get());
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
      std::memset(dx.get(), 0, static_cast<size_t>(NB * width) * sizeof(T));
      for (int64_t row = 0; row < size.out; row += kSumBlock) {
        std::memset(part.get(), 0, static_cast<size_t>(NB * width) * sizeof(T));
        const int32_t* words = weight.words + 2 * row * row_words;
        const int64_t rows = min_of(kSumBlock, size.out - row);
        const T* dense = weight.values + row * size.in;
        if (weight.packed()) {
          const int64_t* start = starts.get() + task * size.out + row;
          const auto values = [&](int64_t r) { return PackedRow<const T>{weight.values + start[r]}; };
          stream_columns_slots<T, NB>(values, words, rows, row_words, first, last, g.get() + row * NB, part.get());
        } else if (slots) {
          const auto values = [&](int64_t r) { return DenseRow<const T>{dense + r * size.in}; };
          stream_columns_slots<T, NB>(values, words, rows, row_words, first, last, g.get() + row * NB, part.get());
        } else {
          stream_columns<T, NB>(dense, words, rows, size.in, first, last, g.get() + row * NB, part.get());
        }
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
void stream_weight_grad(const T* grad, const T* x, const Weight<T>& weight_grad, const LinearSize& size,
                        const Parallel& parallel) {
  const int64_t row_words = ceil_div(size.in, 64);
  // Slot by slot a sum over samples costs as much as a vector of slots does, also where samples fill vectors.
  const bool slots =
      weight_grad.packed() || visit_slots<T, 1>(weight_grad.words, size.out, row_words, size.out * size.in);
  Scratch<T> spread_x(NB * 64 * row_words), g(NB * size.out);
  spread<T, NB>(x, size.batch, size.in, 64 * row_words, slots, spread_x.get());
  spread<T, NB>(grad, size.batch, size.out, size.out, true, g.get());
  const bool past_caches = is_past_caches<T>(size.out * size.in);
  const int64_t grain = grain_of(64 * row_words * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, size.out, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> line(weight_grad.packed() ? 0 : 64 * row_words);
    for (int64_t row = begin; row < end; ++row) {
      const int32_t* words = weight_grad.words + 2 * row * row_words;
      const T* g_row = g.get() + row * NB;
      if (weight_grad.packed()) {
        const PackedRow<T> values{weight_grad.values + weight_grad.start[row]};
        stream_outer_slots<T, NB>(g_row, spread_x.get(), words, row_words, values);
        continue;
      }
      if (slots) {
        std::memset(line.get(), 0, static_cast<size_t>(size.in) * sizeof(T));
        stream_outer_slots<T, NB>(g_row, spread_x.get(), words, row_words, DenseRow<T>{line.get()});
      } else {
        stream_outer<T, NB>(g_row, spread_x.get(), words, row_words, line.get());
      }
      copy_out(line.get(), weight_grad.values + row * size.in, size.in, past_caches);
    }
  });
}

// out[n][i] = sum of row or column i's values times panel columns n, plus bias[i], for panels [first, last); a row of
// out is `stride` long.
template <class T, int NV>
void multiply_panels(const BlockLists<T>& part, const T* panels, int64_t length, int64_t first, int64_t last,
                     int64_t batch, const T* bias, T* tile, T* out, int64_t stride) {
  constexpr int64_t width = kPanel<T, NV>;
  const Lists<T> lists = part.lists();
  for (int64_t panel = first; panel < last; ++panel) {
    for (int64_t i = 0; i < part.count(); ++i) {
      const Vec<T> start = splat(bias == nullptr ? T{0} : bias[i]);
      for (int v = 0; v < NV; ++v) store(tile + i * width + v * kLanes<T>, start);
    }
    for (int64_t list = 0; list < lists.count;) {
      for (int64_t i = 0; i < part.count(); ++i, ++list) {
        Vec<T> total[NV];
        for (int v = 0; v < NV; ++v) total[v] = load(tile + i * width + v * kLanes<T>);
        add_list<T, NV>(lists, list, panels + panel * width * length, total);
        for (int v = 0; v < NV; ++v) store(tile + i * width + v * kLanes<T>, total[v]);
      }
    }
    transpose(tile, width, part.count(), min_of(width, batch - panel * width), out + panel * width * stride, stride);
  }
}

// The sums of a part's slots over all panels, in place of its values.
template <class T, int NV>
void dot_panels(const BlockLists<T>& part, const T* g_panels, const T* x_panels, int64_t first_row,
                const LinearSize& size) {
  constexpr int64_t width = kPanel<T, NV>;
  const Lists<T> lists = part.lists();
  std::memset(part.values(), 0, static_cast<size_t>(part.kept()) * sizeof(T));
  for (int64_t panel = 0; panel < ceil_div(size.batch, width); ++panel) {
    const T* g = g_panels + (panel * size.out + first_row) * width;
    const T* x = x_panels + panel * width * size.in;
    for (int64_t list = 0; list < lists.count;) {
      for (int64_t i = 0; i < part.count(); ++i, ++list) {
        const int64_t at = lists.start[list];
        dot_list<T, NV>(lists.index + at, lists.start[list + 1] - at, 0, g + i * width, x, part.values() + at);
      }
    }
  }
}

// The part's values row by row, as a packed dW has them.
template <class T>
void write_packed(const BlockLists<T>& part, T* values) {
  const Lists<T> lists = part.lists();
  for (int64_t i = 0; i < part.count(); ++i) {
    for (int64_t list = i; list < lists.count; list += part.count()) {
      const int64_t length = lists.start[list + 1] - lists.start[list];
      std::memcpy(values, lists.value + lists.start[list], static_cast<size_t>(length) * sizeof(T));
      values += length;
    }
  }
}

// The part's rows of dW; line: one row of them.
template <class T>
void write_rows(const BlockLists<T>& part, int64_t cols, bool past_caches, T* line, T* rows) {
  const Lists<T> lists = part.lists();
  for (int64_t i = 0; i < part.count(); ++i) {
    T* out = past_caches ? line : rows + i * cols;
    std::memset(out, 0, static_cast<size_t>(cols) * sizeof(T));
    for (int64_t list = i; list < lists.count; list += part.count()) {
      for (int64_t at = lists.start[list]; at < lists.start[list + 1]; ++at) out[lists.index[at]] = lists.value[at];
    }
    if (past_caches) copy_out(line, rows + i * cols, cols, true);
  }
}

}  // namespace

template <Isa isa, class T>
void masked_linear(const T* x, const Weight<const T>& weight, const T* bias, T* y, const LinearSize& size,
                   const Parallel& parallel) {
  if (size.batch <= kStreamBatch) {
    with_batch<kStreamBatch>(size.batch, [&](auto nb) {
      stream_forward<T, decltype(nb)::value>(x, weight, bias, y, size, parallel);
    });
    return;
  }
  const RowTasks tasks(weight.words, size.out, size.in, parallel);
  with_panel<T>(size.batch, [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    constexpr int64_t width = kPanel<T, NV>;
    const int64_t count = ceil_div(size.batch, width);
    Scratch<T> panels(count * width * size.in);
    pack_panels<T, NV>(x, size.batch, size.in, panels.get(), parallel);
    const int64_t block = block_length(tasks.kept(), size.out * size.in, count);
    const int64_t groups = panel_groups(tasks.count(), count, parallel);
    for_ranges(parallel, tasks.count() * groups, 1, [&](int64_t begin, int64_t end) {
      BlockLists<T> part;
      Scratch<T> tile;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / tasks.count(), rows = task % tasks.count(), first = tasks.first(rows);
        part.take_rows(weight, size.in, first, tasks.first(rows + 1), block, tasks.kept(rows));
        tile.allocate(part.count() * width);
        multiply_panels<T, NV>(part, panels.get(), size.in, count * group / groups, count * (group + 1) / groups,
                               size.batch, bias == nullptr ? bias : bias + first, tile.get(), y + first, size.out);
      }
    });
  });
}

template <Isa isa, class T>
void masked_linear_input_grad(const T* grad, const Weight<const T>& weight, T* x_grad, const LinearSize& size,
                              const Parallel& parallel) {
  if (size.batch <= kStreamGradBatch) {
    with_batch<kStreamGradBatch>(size.batch, [&](auto nb) {
      stream_input_grad<T, decltype(nb)::value>(grad, weight, x_grad, size, parallel);
    });
    return;
  }
  const int64_t row_words = ceil_div(size.in, 64), kept = count_kept(weight.words, size.out * row_words);
  with_panel<T>(size.batch, [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    constexpr int64_t width = kPanel<T, NV>;
    const int64_t count = ceil_div(size.batch, width);
    Scratch<T> panels(count * width * size.out);
    pack_panels<T, NV>(grad, size.batch, size.out, panels.get(), parallel);
    const int64_t block = block_length(kept, size.out * size.in, count);
    const int64_t slabs = min_of(row_words, max_of(ceil_div(row_words, kSlabWords), parallel.threads));
    const int64_t groups = panel_groups(slabs, count, parallel);
    const auto first_word = [&](int64_t slab) { return row_words * slab / slabs; };
    Scratch<int64_t> starts(weight.packed() ? slabs * size.out : 0);
    if (weight.packed()) find_slabs(weight, size.out, row_words, slabs, first_word, starts.get(), parallel);
    for_ranges(parallel, slabs * groups, 1, [&](int64_t begin, int64_t end) {
      BlockLists<T> part;
      Scratch<T> tile;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t group = task / slabs, slab = task % slabs, first = first_word(slab);
        const int64_t* from = starts.get() + slab * size.out;
        part.take_columns(weight, from, size.out, size.in, first, first_word(slab + 1), block);
        tile.allocate(part.count() * width);
        const T* no_bias = nullptr;
        multiply_panels<T, NV>(part, panels.get(), size.out, count * group / groups, count * (group + 1) / groups,
                               size.batch, no_bias, tile.get(), x_grad + 64 * first, size.in);
      }
    });
  });
}

template <Isa isa, class T>
void masked_linear_weight_grad(const T* grad, const T* x, const Weight<T>& weight_grad, const LinearSize& size,
                               const Parallel& parallel) {
  if (size.in == 0 || size.out == 0) return;
  if (size.batch <= kStreamBatch) {
    with_batch<kStreamBatch>(size.batch, [&](auto nb) {
      stream_weight_grad<T, decltype(nb)::value>(grad, x, weight_grad, size, parallel);
    });
    return;
  }
  const RowTasks tasks(weight_grad.words, size.out, size.in, parallel);
  with_panel<T>(size.batch, [&](auto nv) {
    constexpr int NV = decltype(nv)::value;
    const int64_t count = ceil_div(size.batch, kPanel<T, NV>), padded = count * kPanel<T, NV>;
    Scratch<T> x_panels(padded * size.in), g_panels(padded * size.out);
    pack_panels<T, NV>(x, size.batch, size.in, x_panels.get(), parallel);
    pack_panels<T, NV>(grad, size.batch, size.out, g_panels.get(), parallel);
    const int64_t block = block_length(tasks.kept(), size.out * size.in, count);
    const bool past_caches = is_past_caches<T>(size.out * size.in);
    for_ranges(parallel, tasks.count(), 1, [&](int64_t begin, int64_t end) {
      BlockLists<T> part;
      Scratch<T> line(size.in);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = tasks.first(task);
        const Weight<const T> no_values{nullptr, weight_grad.words, nullptr};
        part.take_rows(no_values, size.in, first, tasks.first(task + 1), block, tasks.kept(task));
        dot_panels<T, NV>(part, g_panels.get(), x_panels.get(), first, size);
        if (weight_grad.packed()) {
          write_packed(part, weight_grad.values + weight_grad.start[first]);
        } else {
          write_rows(part, size.in, past_caches, line.get(), weight_grad.values + first * size.in);
        }
      }
    });
  });
}

#define SPARSEPRUNE_INSTANTIATE(T)                                                                                \
  template void masked_linear<Isa::SPARSEPRUNE_ISA>(const T*, const Weight<const T>&, const T*, T*,               \
                                                    const LinearSize&, const Parallel&);                          \
  template void masked_linear_input_grad<Isa::SPARSEPRUNE_ISA>(const T*, const Weight<const T>&, T*,              \
                                                               const LinearSize&, const Parallel&);               \
  template void masked_linear_weight_grad<Isa::SPARSEPRUNE_ISA>(const T*, const T*, const Weight<T>&,             \
                                                                const LinearSize&, const Parallel&)
SPARSEPRUNE_INSTANTIATE(float);
SPARSEPRUNE_INSTANTIATE(double);
#undef SPARSEPRUNE_INSTANTIATE

}  // namespace sparseprune
