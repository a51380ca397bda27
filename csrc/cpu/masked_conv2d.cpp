#include <sparseprune/masked_conv2d.h>

#include "conv_blocks.h"

namespace sparseprune {
namespace {

inline int64_t group_columns(const ConvSize& size) {
  return size.in_channels / size.groups * size.kernel[0] * size.kernel[1];
}

// The lists of one group; indices into `index` and `value` stay what they are.
template <class T>
inline Lists<T> of_group(const Lists<T>& lists, int64_t group, int64_t groups) {
  const int64_t count = lists.count / groups;
  return {count, lists.start + group * count, lists.index, lists.value};
}

// The first survivor of a list whose index is at least `index`.
template <class T>
inline int64_t lower_bound(const Lists<T>& lists, int64_t list, int64_t index) {
  int64_t low = lists.start[list], high = lists.start[list + 1];
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (lists.index[middle] < index) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Output channels of `lists`, one block: products with the panel, written where the block's positions are in
// y.
template <class T, int NV>
void multiply_block(const Lists<T>& lists, int64_t first, int64_t last, const T* panel, const T* bias, T* y,
                    const ConvSize& size, const Blocks& blocks, int64_t set, int64_t block) {
  alignas(64) T row[kPanel<T, NV>];
  Run runs[kPanel<T, NV>];
  int64_t count = 0;
  for_runs(blocks, set, block, blocks.positions, [&](const Run& run) { runs[count++] = run; });
  for (int64_t list = first; list < last; ++list) {
    multiply_list<T, NV>(lists, list, panel, row);
    if (bias != nullptr) {
      for (int64_t i = 0; i < kPanel<T, NV>; ++i) row[i] += bias[list];
    }
    for (int64_t r = 0; r < count; ++r) {
      T* to = y + (runs[r].image * size.out_channels + list) * blocks.positions + runs[r].x;
      copy_inside(to, row + runs[r].lane, 0, runs[r].length, runs[r].length);
    }
  }
}

}  // namespace

template <Isa isa, class T>
void masked_conv2d(const T* x, const Weight<const T>& weight, const T* bias, T* y, const ConvSize& given,
                   const Parallel& parallel) {
  const ConvSize size = as_lines(given);
  const int64_t columns = group_columns(size), in = size.in_channels / size.groups,
                out = size.out_channels / size.groups;
  const Blocks blocks(size, panel_width<T>(columns));
  const RowLists<T> rows(weight, size.out_channels, columns, parallel);
  // Few blocks: several tasks share one, each with some of the output channels and a panel of its own.
  const int64_t panels = size.groups * blocks.count();
  const int64_t parts = max_of(1, min_of(ceil_div(4 * parallel.threads, max_of(panels, 1)), out / 8));
  for_ranges(parallel, panels * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> panel(columns * blocks.width);
    Taps taps(size, blocks);
    int64_t built = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t index = task / parts, part = task % parts, group = index % size.groups;
      const int64_t set = index / size.groups / blocks.set_blocks,
                    block = index / size.groups % blocks.set_blocks;
      const int64_t valid = blocks.valid(set, block);
      if (valid == 0) continue;
      with_panel<T>(valid, [&](auto nv) {
        constexpr int NV = decltype(nv)::value;
        if (built != index) {
          if (built < 0 || built / size.groups != index / size.groups) taps.set(set, block);
          build_panel(x, size, taps, group * in, (group + 1) * in, valid, kPanel<T, NV>, panel.get());
          built = index;
        }
        const Lists<T> lists = of_group(rows.lists(), group, size.groups);
        multiply_block<T, NV>(lists, first_list(lists, part, parts), first_list(lists, part + 1, parts),
                              panel.get(), bias == nullptr ? bias : bias + group * out,
                              y + group * out * blocks.positions, size, blocks, set, block);
      });
    }
  });
}

template <Isa isa, class T>
void masked_conv2d_input_grad(const T* grad, const Weight<const T>& weight, T* x_grad, const ConvSize& given,
                              const Parallel& parallel) {
  const ConvSize size = as_lines(given);
  const int64_t columns = group_columns(size), in = size.in_channels / size.groups,
                out = size.out_channels / size.groups;
  const int64_t plane = size.input[0] * size.input[1], taps_count = size.kernel[0] * size.kernel[1];
  const Blocks blocks(size, panel_width<T>(out));
  const RowLists<T> rows(weight, size.out_channels, columns, parallel);
  const ColumnLists<T> lists_of_columns(rows.lists(), columns, size.groups);
  const Lists<T> lists = lists_of_columns.lists();
  Scratch<T> panels(blocks.count() * size.out_channels * blocks.width);
  pack_output_panels(grad, size, blocks, panels.get(), parallel);
  // A task owns some channels of a set of images, so every element is summed by one thread, block after
  // block.
  const int64_t parts =
      max_of(1, min_of(ceil_div(4 * parallel.threads, max_of(blocks.sets * size.groups, 1)), in));
  for_ranges(parallel, blocks.sets * size.groups * parts, 1, [&](int64_t begin, int64_t end) {
    Taps taps(size, blocks);
    alignas(64) T row[kPanel<T, 4>];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, group = task / parts % size.groups, set = task / parts / size.groups;
      const int64_t first = group * in + in * part / parts, last = group * in + in * (part + 1) / parts;
      const int64_t images = blocks.set_positions(set) / blocks.positions;
      for (int64_t image = set * blocks.set_images; image < set * blocks.set_images + images; ++image) {
        std::memset(x_grad + (image * size.in_channels + first) * plane, 0,
                    static_cast<size_t>((last - first) * plane) * sizeof(T));
      }
      for (int64_t block = 0; block < blocks.set_blocks && blocks.valid(set, block) > 0; ++block) {
        taps.set(set, block);
        with_panel<T>(blocks.valid(set, block), [&](auto nv) {
          constexpr int NV = decltype(nv)::value;
          const T* panel = panels.get() +
                           (set * blocks.set_blocks + block) * size.out_channels * blocks.width +
                           group * out * kPanel<T, NV>;
          for (int64_t list = first * taps_count; list < last * taps_count; ++list) {
            if (lists.start[list] == lists.start[list + 1]) continue;
            multiply_list<T, NV>(lists, list, panel, row);
            add_row(row, size, taps, list / taps_count, list % taps_count, x_grad);
          }
        });
      }
    }
  });
}

template <Isa isa, class T>
void masked_conv2d_weight_grad(const T* grad, const T* x, const Weight<T>& weight_grad, const ConvSize& given,
                               const Parallel& parallel) {
  const ConvSize size = as_lines(given);
  const int64_t columns = group_columns(size), in = size.in_channels / size.groups,
                out = size.out_channels / size.groups;
  const int64_t taps_count = size.kernel[0] * size.kernel[1];
  // A task owns some channels, whose im2col rows it alone builds, and sums over all blocks in order. The
  // blocks, and with them the order, do not depend on the number of tasks.
  const Blocks blocks(size, kPanel<T, 4>);
  const int64_t resident =
      ceil_div(columns * kPanel<T, 4> * static_cast<int64_t>(sizeof(T)), kPanelBytes / 2);
  const int64_t parts = max_of(1, min_of(in, max_of(resident, ceil_div(4 * parallel.threads, size.groups))));
  const RowLists<T> rows({nullptr, weight_grad.words, nullptr}, size.out_channels, columns, parallel);
  const Lists<T> lists = rows.lists();
  Scratch<T> panels(blocks.count() * size.out_channels * blocks.width);
  Scratch<T> own_sums(weight_grad.packed() ? 0 : lists.start[lists.count]);
  T* sums = weight_grad.packed() ? weight_grad.values : own_sums.get();
  pack_output_panels(grad, size, blocks, panels.get(), parallel);
  std::memset(sums, 0, static_cast<size_t>(lists.start[lists.count]) * sizeof(T));
  for_ranges(parallel, size.groups * parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> panel(ceil_div(in, parts) * taps_count * blocks.width);
    Scratch<int64_t> from(out), to(out);
    Taps taps(size, blocks);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task / parts, part = task % parts;
      const int64_t first = in * part / parts, last = in * (part + 1) / parts;
      for (int64_t row = 0; row < out; ++row) {
        from[row] = lower_bound(lists, group * out + row, first * taps_count);
        to[row] = lower_bound(lists, group * out + row, last * taps_count);
      }
      for (int64_t index = 0; index < blocks.count(); ++index) {
        const int64_t set = index / blocks.set_blocks, block = index % blocks.set_blocks;
        const int64_t valid = blocks.valid(set, block);
        if (valid == 0) continue;
        taps.set(set, block);
        with_panel<T>(valid, [&](auto nv) {
          constexpr int NV = decltype(nv)::value;
          build_panel(x, size, taps, group * in + first, group * in + last, valid, kPanel<T, NV>,
                      panel.get());
          const T* g = panels.get() + index * size.out_channels * blocks.width + group * out * kPanel<T, NV>;
          for (int64_t row = 0; row < out; ++row) {
            dot_list<T, NV>(lists.index + from[row], to[row] - from[row], first * taps_count,
                            g + row * kPanel<T, NV>, panel.get(), sums + from[row]);
          }
        });
      }
    }
  });
  if (weight_grad.packed()) return;
  for_ranges(parallel, size.out_channels, grain_of(8 * columns), [&](int64_t begin, int64_t end) {
    std::memset(weight_grad.values + begin * columns, 0, static_cast<size_t>((end - begin) * columns) * sizeof(T));
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t at = lists.start[row]; at < lists.start[row + 1]; ++at) {
        weight_grad.values[row * columns + lists.index[at]] = sums[at];
      }
    }
  });
}

#define SPARSEPRUNE_INSTANTIATE(T)                                                                                \
  template void masked_conv2d<Isa::SPARSEPRUNE_ISA>(const T*, const Weight<const T>&, const T*, T*,               \
                                                    const ConvSize&, const Parallel&);                            \
  template void masked_conv2d_input_grad<Isa::SPARSEPRUNE_ISA>(const T*, const Weight<const T>&, T*,              \
                                                               const ConvSize&, const Parallel&);                 \
  template void masked_conv2d_weight_grad<Isa::SPARSEPRUNE_ISA>(const T*, const T*, const Weight<T>&,             \
                                                                const ConvSize&, const Parallel&)
SPARSEPRUNE_INSTANTIATE(float);
SPARSEPRUNE_INSTANTIATE(double);
#undef SPARSEPRUNE_INSTANTIATE

}  // namespace sparseprune
