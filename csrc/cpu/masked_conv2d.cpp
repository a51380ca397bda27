#include <sparseprune/masked_conv2d.h>

#include <algorithm>
#include <cmath>

#include "conv_products.h"

namespace sparseprune {
namespace {

// What a tile may fill of the L2 cache, and so many positions that its edges, which are read twice, hardly matter.
constexpr int64_t kTileBytes = 1 << 18;
constexpr int64_t kTilePositions = 1 << 12;
// Vectors of positions that a pass over the survivors of the weight's gradient sums at once.
constexpr int64_t kGradVectors = 32;
// Most shares of the windows whose sums are kept apart.
constexpr int64_t kShares = 8;

// Windows whose tiles fit into the L2 cache, if a block of positions does.
template <class T>
Windows windows_of(const Geometry& g) {
  constexpr int64_t block = kBlockVectors * kLanes<T>;
  const int64_t bytes = max_of(1, g.source_channels * g.source_phases()) * static_cast<int64_t>(sizeof(T));
  return Windows(g, max_of(block, min_of(kTilePositions, kTileBytes / bytes)), block);
}

// Bytes that a block of positions reads of a source channel.
template <class T>
int64_t bytes_of_channel(const Windows& windows, int64_t positions) {
  const Geometry& g = windows.geometry;
  const int64_t line = positions + g.x.high - g.x.low + 16;
  const int64_t lines = min_of(g.y.high - g.y.low + 1, g.y.kernel);
  const int64_t read = min_of(Tile<T>::plane_size(windows), min_of(lines * line, line + windows.most_shift()));
  return g.source_phases() * read * static_cast<int64_t>(sizeof(T));
}

// Parts of some lists that are tasks of their own, each with a tile of its own to fill.
inline int64_t most_parts(int64_t lists, int64_t threads) { return max_of(1, min_of(lists / 8, threads)); }

// Result channels [first, last) of a group for one window.
template <class T>
class Block {
 public:
  Block(const Windows& windows, const ConvLists<T>& lists)
      : windows_(windows), lists_(lists), places_(windows), phases_(windows.geometry.result_phases()) {}

  void run(const Tile<T>& tile, const Window& window, int64_t first, int64_t last, const T* bias, T* result) {
    const int64_t positions = windows_.positions(window), all = ceil_div(positions, kLanes<T>);
    const int64_t blocks = ceil_div(all, kBlockVectors);
    if (lists_.blocks > 1) totals_.allocate((last - first) * kBlockVectors * kLanes<T>);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = block * kBlockVectors, end = min_of(all, begin + kBlockVectors);
      places_.set(window, begin * kLanes<T>, min_of(end * kLanes<T>, positions));
      with_count(end - begin, [&](auto nv) {
        sum<decltype(nv)::value>(tile.get() + begin * kLanes<T>, first, last, bias, result);
      });
    }
  }

 private:
  template <int NV>
  void sum(const T* tile, int64_t first, int64_t last, const T* bias, T* result) {
    const int64_t channel_size = Tile<T>::channel_size(windows_);
    for (int64_t b = 0; b < lists_.blocks; ++b) {
      const T* from = tile + b * lists_.block_channels * channel_size;
      for (int64_t list = first; list < last; ++list) {
        T* row = totals_.get() + (list - first) * NV * kLanes<T>;
        Vec<T> total[NV];
        const Vec<T> start = splat(bias == nullptr ? T{0} : bias[list]);
        for (int v = 0; v < NV; ++v) total[v] = b == 0 ? start : load(row + v * kLanes<T>);
        const int64_t begin = lists_.begin(list, b), count = lists_.end(list, b) - begin;
        add_survivors<T, NV>(lists_.offset + begin, lists_.value + begin, count, from, total);
        alignas(64) T done[NV * kLanes<T>];
        const bool last_block = b == lists_.blocks - 1;
        for (int v = 0; v < NV; ++v) store((last_block ? done : row) + v * kLanes<T>, total[v]);
        if (last_block) places_.write(done, list / phases_, list % phases_, result);
      }
    }
  }

  const Windows& windows_;
  const ConvLists<T>& lists_;
  Places<T> places_;
  int64_t phases_;
  Scratch<T> totals_;
};

// The output's gradient in a window, a row of positions for each of some channels, 0 where a position means nothing.
template <class T>
class GradRows {
 public:
  GradRows(const Windows& windows, const ConvSize& size)
      : windows_(windows),
        size_(size),
        row_((ceil_div(windows.most_positions() * static_cast<int64_t>(sizeof(T)), 64) | 1) * 64 / sizeof(T)),
        runs_(windows.images * windows.rows) {}

  void fill(const T* grad, const Window& window, int64_t first, int64_t last) {
    if (last - first > channels_) memory_.allocate((last - first) * row_);
    const bool cleared = window.same_shape(last_) && last - first <= channels_;
    channels_ = last - first;
    last_ = window;
    count_ = 0;
    for_runs(windows_, window, 0, windows_.positions(window), [&](const Run& run) { runs_[count_++] = run; });
    for (int64_t channel = first; channel < last; ++channel) {
      T* to = memory_.get() + (channel - first) * row_;
      if (!cleared) std::memset(to, 0, static_cast<size_t>(row_) * sizeof(T));
      for (int64_t i = 0; i < count_; ++i) {
        const Run& run = runs_[i];
        const int64_t line = (run.image * size_.out_channels + channel) * size_.output[0] + run.row;
        const T* from = grad + line * size_.output[1] + run.column;
        prefetch_run(from + kChannelsAhead * size_.output[0] * size_.output[1], run.length);
        copy_run(to + run.position, from, run.length);
      }
    }
  }
  const T* operator[](int64_t channel) const { return memory_.get() + channel * row_; }
  // sum_q grad[q] plane[q] of a channel, over the positions that mean something.
  T dot(int64_t channel, const T* plane) const { return dot_runs((*this)[channel], plane, runs_.get(), count_); }

 private:
  const Windows& windows_;
  const ConvSize& size_;
  int64_t row_, channels_ = 0, count_ = 0;
  Window last_{};
  Scratch<Run> runs_;
  Scratch<T> memory_;
};

template <class T>
void convolve(const Windows& windows, const ConvLists<T>& lists, const T* source, const T* bias, T* result,
              const Parallel& parallel) {
  const int64_t groups = windows.geometry.groups, tiles = windows.count() * groups;
  // Few tiles: several tasks share one, each with some of the result's channels and a tile of its own.
  const int64_t parts = tiles >= 4 * parallel.threads ? 1 : most_parts(lists.count / groups, parallel.threads);
  for_ranges(parallel, tiles * parts, 1, [&](int64_t begin, int64_t end) {
    Tile<T> tile(windows);
    Block<T> block(windows, lists);
    int64_t filled = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, index = task / parts, group = index % groups;
      const Window window = windows[index / groups];
      const int64_t first = lists.part(group, groups, part, parts), last = lists.part(group, groups, part + 1, parts);
      if (first == last) continue;
      if (filled != index) tile.fill(source, window, group);
      filled = index;
      block.run(tile, window, first, last, bias, result);
    }
  });
}

}  // namespace

template <Isa isa, class T>
void masked_conv2d(const T* x, const Weight<const T>& weight, const T* bias, T* y, const ConvSize& given,
                   const Parallel& parallel) {
  const ConvSize size = as_lines(given);
  const Geometry g = forward_geometry(size);
  if (size.batch == 0 || size.out_channels == 0) return;
  const Windows windows = windows_of<T>(g);
  RowLists<T> rows(weight, size.out_channels, g.columns(g.source_channels), parallel);
  const int64_t bytes = bytes_of_channel<T>(windows, kBlockVectors * kLanes<T>);
  const int64_t kept = rows.lists().start[size.out_channels];
  const RowOffsets<T> offsets(rows, windows, block_channels<T>(windows, bytes, kept, size.out_channels), parallel);
  convolve(windows, offsets.lists(), x, bias, y, parallel);
}

template <Isa isa, class T>
void masked_conv2d_input_grad(const T* grad, const Weight<const T>& weight, T* x_grad, const ConvSize& given,
                              const Parallel& parallel) {
  const ConvSize size = as_lines(given);
  const Geometry g = backward_geometry(size);
  if (size.batch == 0 || size.in_channels == 0) return;
  const Windows windows = windows_of<T>(g);
  const RowLists<T> rows(weight, size.out_channels, g.columns(g.result_channels), parallel);
  const int64_t bytes = bytes_of_channel<T>(windows, kBlockVectors * kLanes<T>);
  const int64_t kept = rows.lists().start[size.out_channels];
  const int64_t lists = size.in_channels * g.result_phases();
  const ColumnOffsets<T> offsets(rows.lists(), windows, block_channels<T>(windows, bytes, kept, lists), parallel);
  const T* no_bias = nullptr;
  convolve(windows, offsets.lists(), grad, no_bias, x_grad, parallel);
}

template <Isa isa, class T>
void masked_conv2d_weight_grad(const T* grad, const T* x, const Weight<T>& weight_grad, const ConvSize& given,
                               const Parallel& parallel) {
  const ConvSize size = as_lines(given);
  const Geometry g = forward_geometry(size);
  const int64_t columns = g.columns(g.source_channels);
  RowLists<T> rows({nullptr, weight_grad.words, nullptr}, size.out_channels, columns, parallel);
  const int64_t kept = rows.lists().start[size.out_channels];
  const Windows windows = windows_of<T>(g);
  Scratch<int32_t> index;
  if (!weight_grad.packed()) {
    index.allocate(kept);
    std::memcpy(index.get(), rows.indices(), static_cast<size_t>(kept) * sizeof(int32_t));
  }
  const int64_t bytes = bytes_of_channel<T>(windows, min_of(kGradVectors * kLanes<T>, windows.most_positions()));
  const RowOffsets<T> offsets(rows, windows, block_channels<T>(windows, bytes, kept, size.out_channels), parallel);
  const ConvLists<T> lists = offsets.lists();
  // The windows are shared out, each share with sums of its own, which are added in order; how many there are does not
  // depend on the threads, but on the sizes: the sums should not be more than what the windows read.
  const int64_t x_values = size.batch * size.in_channels * size.input[0] * size.input[1];
  const int64_t shares = max_of(1, min_of(min_of(kShares, windows.count()), x_values / max_of(1, kept)));
  Scratch<T> own_sums((shares - (weight_grad.packed() ? 1 : 0)) * kept);
  T* const all_sums = weight_grad.packed() ? weight_grad.values : own_sums.get();
  T* const other_sums = weight_grad.packed() ? own_sums.get() : own_sums.get() + kept;  // of shares from the second on
  // A task owns some output channels in a share, and sums over its windows in order.
  const int64_t parts = most_parts(size.out_channels / g.groups, ceil_div(parallel.threads, g.groups * shares));
  for_ranges(parallel, shares * g.groups * parts, 1, [&](int64_t begin, int64_t end) {
    Tile<T> tile(windows);
    GradRows<T> rows(windows, size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t share = task / parts / g.groups, group = task / parts % g.groups;
      T* const sums = share == 0 ? all_sums : other_sums + (share - 1) * kept;
      const int64_t first = lists.part(group, g.groups, task % parts, parts);
      const int64_t last = lists.part(group, g.groups, task % parts + 1, parts);
      if (first == last) continue;
      const auto for_windows = [&](const auto& add) {
        const int64_t count = windows.count();
        for (int64_t w = count * share / shares; w < count * (share + 1) / shares; ++w) {
          const Window window = windows[w];
          tile.fill(x, window, group);
          rows.fill(grad, window, first, last);
          add(ceil_div(windows.positions(window), kLanes<T>));
        }
      };
      const auto for_lists = [&](const auto& add) {
        for (int64_t b = 0; b < lists.blocks; ++b) {
          const T* planes = tile.get() + b * lists.block_channels * Tile<T>::channel_size(windows);
          for (int64_t row = first; row < last; ++row) add(row - first, planes, lists.begin(row, b), lists.end(row, b));
        }
      };
      const int64_t start = lists.begin(first, 0), count = lists.begin(last, 0) - start;
      T* const own = sums + start;
      std::fill_n(own, count, T{0});  // of none there may be no memory
      for_windows([&](int64_t all) {
        const int64_t blocks = ceil_div(all, kGradVectors);
        for (int64_t block = 0; block < blocks; ++block) {
          const int64_t from = all * block / blocks, vectors = all * (block + 1) / blocks - from;
          for_lists([&](int64_t row, const T* planes, int64_t at, int64_t end) {
            const T *g = rows[row] + from * kLanes<T>, *tile_part = planes + from * kLanes<T>;
            dot_positions(g, tile_part, lists.offset + at, end - at, vectors, sums + at);
          });
        }
      });
      // Between rows the gradient is 0, which times an infinite x is NaN: such sums are made again without them.
      if (std::all_of(own, own + count, [](T sum) { return std::isfinite(sum); })) continue;
      Scratch<bool> again(count);
      for (int64_t i = 0; i < count; ++i) again[i] = !std::isfinite(own[i]);
      for (int64_t i = 0; i < count; ++i) own[i] = again[i] ? T{0} : own[i];
      for_windows([&](int64_t) {
        for_lists([&](int64_t row, const T* planes, int64_t at, int64_t end) {
          for (int64_t i = at; i < end; ++i) {
            if (again[i - start]) sums[i] += rows.dot(row, planes + lists.offset[i]);
          }
        });
      });
    }
  });
  for_ranges(parallel, shares > 1 ? kept : 0, grain_of(shares * static_cast<int64_t>(sizeof(T))),
             [&](int64_t begin, int64_t end) {
               for (int64_t share = 0; share + 1 < shares; ++share) {
                 for (int64_t i = begin; i < end; ++i) all_sums[i] += other_sums[share * kept + i];
               }
             });
  if (weight_grad.packed()) return;
  const Lists<T> survivors = rows.lists();
  for_ranges(parallel, size.out_channels, grain_of(8 * columns), [&](int64_t begin, int64_t end) {
    std::memset(weight_grad.values + begin * columns, 0, static_cast<size_t>((end - begin) * columns) * sizeof(T));
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t at = survivors.start[row]; at < survivors.start[row + 1]; ++at) {
        weight_grad.values[row * columns + index[at]] = all_sums[at];
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
