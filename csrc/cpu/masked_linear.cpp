#include <sparseprune/masked_linear.h>

#include "block_lists.h"
#include "linear_small.h"

namespace sparseprune {
namespace {

// Asks, list by list, for the panel rows of the block after the present one, as they are read in no order.
template <class T>
class BlockAhead {
 public:
  BlockAhead(const T* panel, int64_t block_values, int64_t lists)
      : next_(panel + block_values), end_(next_ + block_values), step_(ceil_div(block_values * sizeof(T), 64 * lists)) {}
  void step() {
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    for (int64_t i = 0; i < step_ && next_ < end_; ++i, next_ += line) __builtin_prefetch(next_, 0, 2);
  }

 private:
  const T *next_, *end_;
  int64_t step_;
};

// out[n][i] = sum of row or column i's values times panel columns n, plus bias[i], for panels [first, last); a row of
// out is `stride` long.
template <class T, int NV>
void multiply_panels(const BlockLists<T>& part, const T* values, const T* panels, int64_t length, int64_t block,
                     int64_t count, int64_t first, int64_t last, int64_t batch, const T* bias, T* tile, T* out,
                     int64_t stride) {
  constexpr int64_t width = kPanel<T, NV>;
  const Lists<T> lists = part.lists(values);
  for (int64_t panel = first; panel < last; ++panel) {
    for (int64_t i = 0; i < count; ++i) {
      const Vec<T> start = splat(bias == nullptr ? T{0} : bias[i]);
      for (int v = 0; v < NV; ++v) store(tile + i * width + v * kLanes<T>, start);
    }
    for (int64_t b = 0; b < part.blocks(); ++b) {
      BlockAhead<T> ahead(panels + (panel * length + b * block) * width, block * width, count);
      for (int64_t i = 0; i < count; ++i) {
        if (part.blocks() > 1) ahead.step();
        Vec<T> total[NV];
        for (int v = 0; v < NV; ++v) total[v] = load(tile + i * width + v * kLanes<T>);
        add_list<T, NV>(lists, part.list(i, b), panels + panel * width * length, total);
        for (int v = 0; v < NV; ++v) store(tile + i * width + v * kLanes<T>, total[v]);
      }
    }
    transpose(tile, width, count, min_of(width, batch - panel * width), out + panel * width * stride, stride);
  }
}

// The sums of a part's slots over all panels.
template <class T, int NV>
void dot_panels(const BlockLists<T>& part, const T* g_panels, const T* x_panels, int64_t first_row, int64_t block,
                const LinearSize& size, T* sums) {
  constexpr int64_t width = kPanel<T, NV>;
  const Lists<T> lists = part.lists(sums);
  std::memset(sums, 0, static_cast<size_t>(part.kept()) * sizeof(T));
  for (int64_t panel = 0; panel < ceil_div(size.batch, width); ++panel) {
    const T* g = g_panels + (panel * size.out + first_row) * width;
    const T* x = x_panels + panel * width * size.in;
    for (int64_t b = 0; b < part.blocks(); ++b) {
      BlockAhead<T> ahead(x + b * block * width, block * width, part.count());
      for (int64_t i = 0; i < part.count(); ++i) {
        if (part.blocks() > 1) ahead.step();
        const int64_t list = part.list(i, b), at = lists.start[list];
        dot_list<T, NV>(lists.index + at, lists.start[list + 1] - at, 0, g + i * width, x, sums + at);
      }
    }
  }
}

// The part's rows of dW from its sums; words: of those rows, line: whole words of one of them.
template <class T>
void write_rows(const BlockLists<T>& part, const T* sums, const int32_t* words, int64_t cols, bool past_caches, T* line,
                T* rows) {
  const Lists<T> lists = part.lists(sums);
  const int64_t row_words = ceil_div(cols, 64);
  for (int64_t i = 0; i < part.count(); ++i) {
    const int64_t start = lists.start[part.list(i, 0)], end = lists.start[part.list(i + 1, 0)];
    if constexpr (kExpands) {
      PackedVectors<T> values{sums + start, 0};
      for (int64_t word = 0; word < row_words; ++word) {
        const uint64_t bits = load_bits(words, i * row_words + word);
        for (int lane = 0; lane < 64; lane += kLanes<T>) store(line + 64 * word + lane, values.next(lane, bits));
      }
    } else {
      std::memset(line, 0, static_cast<size_t>(cols) * sizeof(T));
      for (int64_t at = start; at < end; ++at) line[lists.index[at]] = sums[at];
    }
    copy_out(line, rows + i * cols, cols, past_caches);
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
        part.take_rows(weight.words, size.in, first, tasks.first(rows + 1), block, tasks.kept(rows));
        const T* values = weight.packed() ? weight.values + weight.start[first]
                                          : part.take_values(weight.values + first * size.in, size.in);
        tile.allocate(part.count() * width);
        multiply_panels<T, NV>(part, values, panels.get(), size.in, block, part.count(), count * group / groups,
                               count * (group + 1) / groups, size.batch, bias == nullptr ? bias : bias + first,
                               tile.get(), y + first, size.out);
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
        multiply_panels<T, NV>(part, part.values(), panels.get(), size.out, block,
                               min_of(part.count(), size.in - 64 * first), count * group / groups,
                               count * (group + 1) / groups, size.batch, no_bias, tile.get(), x_grad + 64 * first,
                               size.in);
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
    const int64_t block = block_length(tasks.kept(), size.out * size.in, count, kDotSurvivors);
    const bool past_caches = is_past_caches<T>(size.out * size.in);
    for_ranges(parallel, tasks.count(), 1, [&](int64_t begin, int64_t end) {
      BlockLists<T> part;
      Scratch<T> line(64 * ceil_div(size.in, 64));
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = tasks.first(task);
        part.take_rows(weight_grad.words, size.in, first, tasks.first(task + 1), block, tasks.kept(task));
        T* sums = weight_grad.packed() ? weight_grad.values + weight_grad.start[first] : part.values();
        dot_panels<T, NV>(part, g_panels.get(), x_panels.get(), first, block, size, sums);
        if (weight_grad.packed()) continue;
        write_rows(part, sums, weight_grad.words + 2 * first * ceil_div(size.in, 64), size.in, past_caches, line.get(),
                   weight_grad.values + first * size.in);
      }
      copied_out();
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
