// The survivors of a convolution's weight as lists of shifts into a tile, cut into blocks of source channels.
#pragma once

#include "block_lists.h"
#include "conv_tile.h"

namespace sparseprune {
namespace {

// List i is of result channel and phase i; its survivors in source channels of block b are [start[i * blocks + b],
// start[i * blocks + b + 1]), and offsets count from the plane of the block's first channel.
template <class T>
struct ConvLists {
  int64_t count, blocks, block_channels;
  const int64_t* start;
  const int32_t* offset;
  const T* value;

  int64_t begin(int64_t list, int64_t block) const { return start[list * blocks + block]; }
  int64_t end(int64_t list, int64_t block) const { return start[list * blocks + block + 1]; }

  // The first list of part `part` of `parts` of a group's lists, so that the parts hold about as many survivors each.
  int64_t part(int64_t group, int64_t groups, int64_t part, int64_t parts) const {
    constexpr int64_t kListCost = 8;  // of an empty list, in survivors
    const int64_t from = count / groups * group, to = from + count / groups;
    const auto cost = [&](int64_t list) {
      return start[list * blocks] - start[from * blocks] + kListCost * (list - from);
    };
    const int64_t target = cost(to) / parts * part + cost(to) % parts * part / parts;
    int64_t low = from, high = to;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (cost(middle) < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return part == parts ? to : low;
  }
};

// Source channels that all of a group's lists pass over before the next ones: the `bytes` that a block of positions
// reads of each should stay in the L1 cache, unless the lists become short by that. Few enough for 32-bit offsets.
template <class T>
inline int64_t block_channels(const Windows& windows, int64_t bytes, int64_t kept, int64_t lists) {
  const int64_t all = max_of(1, windows.geometry.source_channels);
  const int64_t long_enough = ceil_div(kListSurvivors * lists * all, max_of(kept, 1));
  const int64_t most = max_of(1, (int64_t{1} << 30) / Tile<T>::channel_size(windows));
  const int64_t channels = min_of(most, max_of(1, max_of(kBlockBytes / 2 / bytes, long_enough)));
  return ceil_div(all, ceil_div(all, min_of(all, channels)));
}

// By rows of the weight: for the forward pass and, without values, for the weight's gradient.
template <class T>
class RowOffsets {
 public:
  RowOffsets(RowLists<T>& rows, const Windows& windows, int64_t channels_in_block, const Parallel& parallel)
      : rows_(rows), channels_(channels_in_block) {
    const Geometry& g = windows.geometry;
    const int64_t taps = g.taps(), columns = g.columns(g.source_channels), plane = Tile<T>::plane_size(windows);
    blocks_ = max_of(1, ceil_div(g.source_channels, channels_));
    Scratch<int32_t> offset(columns);
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t channel = column / taps % channels_, y = column % taps / g.x.kernel, x = column % taps % g.x.kernel;
      const int64_t slot = g.y.phase_slot(y) * g.x.source_phases() + g.x.phase_slot(x);
      offset[column] =
          static_cast<int32_t>((channel * g.source_phases() + slot) * plane + windows.shift(y, x));
    }
    const Lists<T> lists = rows.lists();
    start_.allocate(lists.count * blocks_ + 1);
    start_[lists.count * blocks_] = lists.start[lists.count];
    for_ranges(parallel, lists.count, grain_of(columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        int64_t block = 0;
        start_[row * blocks_] = lists.start[row];
        for (int64_t p = lists.start[row]; p < lists.start[row + 1]; ++p) {
          const int32_t column = lists.index[p];
          while (column >= (block + 1) * channels_ * taps) start_[row * blocks_ + ++block] = p;
          rows.indices()[p] = offset[column];
        }
        while (block + 1 < blocks_) start_[row * blocks_ + ++block] = lists.start[row + 1];
      }
    });
  }
  ConvLists<T> lists() const {
    const Lists<T> rows = rows_.lists();
    return {rows.count, blocks_, channels_, start_.get(), rows.index, rows.value};
  }

 private:
  const RowLists<T>& rows_;
  int64_t channels_, blocks_;
  Scratch<int64_t> start_;
};

// By columns, of which a list is a channel of the input and a phase: for the input's gradient.
template <class T>
class ColumnOffsets {
 public:
  ColumnOffsets(const Lists<T>& rows, const Windows& windows, int64_t channels_in_block, const Parallel& parallel)
      : channels_(channels_in_block) {
    const Geometry& g = windows.geometry;
    const int64_t taps = g.taps(), columns = g.columns(g.result_channels), plane = Tile<T>::plane_size(windows);
    blocks_ = max_of(1, ceil_div(g.source_channels, channels_));
    count_ = g.groups * g.result_channels * g.result_phases();
    struct Slot {
      int32_t list, shift;
    };
    Scratch<Slot> slots(columns);
    for (int64_t column = 0; column < columns; ++column) {
      const int64_t y = column % taps / g.x.kernel, x = column % taps % g.x.kernel;
      const int64_t phase = g.y.result_phase(y) * g.x.result_step + g.x.result_phase(x);
      slots[column] = {static_cast<int32_t>(column / taps * g.result_phases() + phase),
                       static_cast<int32_t>(windows.shift(y, x))};
    }
    start_.allocate(count_ * blocks_ + 2);
    std::memset(start_.get(), 0, static_cast<size_t>(count_ * blocks_ + 2) * sizeof(int64_t));
    // A thread passes over all rows, and takes of each what is in its channels' columns.
    const int64_t grain = grain_of(16 * rows.start[rows.count] / max_of(1, g.result_channels));
    const auto for_rows = [&](const auto& body) {
      for_ranges(parallel, g.result_channels, grain, [&](int64_t begin, int64_t end) {
        for (int64_t row = 0; row < rows.count; ++row) {
          const int64_t group = row / g.source_channels, channel = row % g.source_channels;
          // Counted two places up, so that after the sums the place one up is where a list is filled next.
          const int64_t first = group * g.result_channels * g.result_phases() * blocks_ + channel / channels_;
          int64_t* next = start_.get() + 2 + first;
          const int64_t from = first_from(rows, row, begin * taps), to = first_from(rows, row, end * taps);
          body(next, static_cast<int32_t>(channel % channels_ * plane), from, to);
        }
      });
    };
    for_rows([&](int64_t* next, int32_t, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) ++next[slots[rows.index[p]].list * blocks_];
    });
    for (int64_t i = 2; i < count_ * blocks_ + 2; ++i) start_[i] += start_[i - 1];
    offset_.allocate(rows.start[rows.count]);
    value_.allocate(rows.start[rows.count]);
    for_rows([&](int64_t* next, int32_t base, int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const Slot slot = slots[rows.index[p]];
        const int64_t at = next[slot.list * blocks_ - 1]++;
        offset_[at] = base + slot.shift;
        value_[at] = rows.value[p];
      }
    });
  }
  ConvLists<T> lists() const { return {count_, blocks_, channels_, start_.get(), offset_.get(), value_.get()}; }

 private:
  // Where in the lists a row's columns are at least this one.
  static int64_t first_from(const Lists<T>& rows, int64_t row, int64_t column) {
    int64_t low = rows.start[row], high = rows.start[row + 1];
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (rows.index[middle] < column) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  int64_t count_, channels_, blocks_;
  Scratch<int64_t> start_;
  Scratch<int32_t> offset_;
  Scratch<T> value_;
};

}  // namespace
}  // namespace sparseprune
