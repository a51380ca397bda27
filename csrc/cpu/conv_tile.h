// Tiles: the part of a tensor that one window of a convolution reads, as padded planes, and the way back.
#pragma once

#include "conv_geometry.h"
#include "lane_sums.h"
#include "panels.h"

namespace sparseprune {
namespace {

// Vectors of positions that a pass over the survivors sums at once.
constexpr int kBlockVectors = 8;
// Channels that are asked for before their turn: so many memory accesses in flight a core needs.
constexpr int64_t kChannelsAhead = 8;

template <class T>
inline void copy_run(T* to, const T* from, int64_t length) {
  constexpr int half = kLanes<T> / 2;
  int64_t i = 0;
  for (; i + kLanes<T> <= length; i += kLanes<T>) store(to + i, load(from + i));
  if (i == length) return;
  if (length >= kLanes<T>) {
    store(to + length - kLanes<T>, load(from + length - kLanes<T>));
  } else if (length >= half) {
    Lanes<T, half> first, last;  // as vectors: what the compiler makes of a copy of bytes, sanitizers do not see
    get(first, from);
    get(last, from + length - half);
    put(to, first);
    put(to + length - half, last);
  } else {
    for (; i < length; ++i) to[i] = from[i];
  }
}

template <class T, int... i>
inline Vec<T> evens(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  return shuffle<T>(a, b, std::integer_sequence<int, 2 * i...>{});
}

// to[i] = from[i * step]
template <class T>
inline void gather_run(T* to, const T* from, int64_t step, int64_t length) {
  if (step == 1) return copy_run(to, from, length);
  int64_t i = 0;
  if (step == 2) {  // the last element read is one that is wanted
    for (; i + kLanes<T> < length; i += kLanes<T>) {
      const Vec<T> low = load(from + 2 * i), high = load(from + 2 * i + kLanes<T>);
      store(to + i, evens<T>(low, high, std::make_integer_sequence<int, kLanes<T>>{}));
    }
  }
  for (; i < length; ++i) to[i] = from[i * step];
}

// Padded planes of the source channels of a group: [channels][source phases][plane].
template <class T>
class Tile {
 public:
  explicit Tile(const Windows& windows)
      : windows_(windows), phases_(windows.geometry.source_phases()), plane_(plane_size(windows)) {}

  // An odd number of cache lines, so that planes do not compete for the same lines of the L1 cache.
  static int64_t plane_size(const Windows& windows) {
    constexpr int64_t line = 64 / static_cast<int64_t>(sizeof(T));
    const int64_t positions = windows.most_positions() + windows.most_shift() + kBlockVectors * kLanes<T>;
    return (ceil_div(positions, line) | 1) * line;
  }
  static int64_t channel_size(const Windows& windows) {
    return windows.geometry.source_phases() * plane_size(windows);
  }

  void fill(const T* source, const Window& window, int64_t group) {
    const Geometry& g = windows_.geometry;
    const Axis &y = g.y, &x = g.x;
    const int64_t channels = g.source_channels, line = windows_.line_pitch();
    if (memory_.get() == nullptr) memory_.allocate(channels * phases_ * plane_);
    const bool cleared = is_padded_like(window);
    last_ = window;
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t slot = 0; slot < phases_; ++slot) {
        T* plane = memory_.get() + (channel * phases_ + slot) * plane_;
        if (!cleared) std::memset(plane, 0, static_cast<size_t>(plane_) * sizeof(T));
        const int64_t phase_y = y.source_phase(slot / x.source_phases());
        const int64_t phase_x = x.source_phase(slot % x.source_phases());
        const Span rows = span(y, phase_y, window.row, window.rows);
        const Span columns = span(x, phase_x, window.column, window.columns);
        for (int64_t image = 0; image < window.images; ++image) {
          const int64_t number = (window.image + image) * g.groups * channels + group * channels + channel;
          for (int64_t row = rows.begin; row < rows.end; ++row) {
            const int64_t lines = image * windows_.image_pitch() + row - window.row - y.low;
            const T* from = source + (number * y.source + phase_y + row * y.source_step) * x.source + phase_x;
            T* to = plane + lines * line + columns.begin - window.column - x.low;
            const int64_t length = columns.end - columns.begin;
            // The same run of a later channel: no hardware prefetcher follows from one plane to the next.
            prefetch_run(from + columns.begin * x.source_step + kChannelsAhead * y.source * x.source,
                         length * x.source_step);
            gather_run(to, from + columns.begin * x.source_step, x.source_step, length);
          }
        }
      }
    }
  }

  const T* get() const { return memory_.get(); }

 private:
  struct Span {
    int64_t begin, end;
  };
  // Positions whose elements of a phase a window of an axis reads.
  static Span span(const Axis& axis, int64_t phase, int64_t begin, int64_t count) {
    const int64_t length = max_of(0, ceil_div(axis.source - phase, axis.source_step));
    return {max_of(0, begin + axis.low), min_of(length, begin + count + axis.high)};
  }

  // Did the window before this one have its padding at the same places, where it still is?
  bool is_padded_like(const Window& w) const {
    if (!w.same_shape(last_)) return false;
    const auto inside = [](const Axis& axis, int64_t begin, int64_t count) {
      return begin + axis.low >= 0 && begin + count + axis.high <= axis.source / axis.source_step;
    };
    const auto both_inside = [&](const Axis& axis, int64_t begin, int64_t before, int64_t count) {
      return begin == before || (inside(axis, begin, count) && inside(axis, before, count));
    };
    const Geometry& g = windows_.geometry;
    return both_inside(g.y, w.row, last_.row, w.rows) && both_inside(g.x, w.column, last_.column, w.columns);
  }

  const Windows& windows_;
  int64_t phases_, plane_;
  Window last_{};
  Scratch<T> memory_;
};

// Where a block of positions of a window goes in a channel's plane of the result.
template <class T>
class Places {
 public:
  explicit Places(const Windows& windows) : windows_(windows), places_(kBlockVectors * kLanes<T>) {}

  void set(const Window& window, int64_t begin, int64_t end) {
    count_ = 0;
    for_runs(windows_, window, begin, end, [&](const Run& run) {
      places_[count_++] = {run.position - begin, run.length, run};
    });
  }

  // row: the block's results for a channel of a group and a phase.
  void write(const T* row, int64_t channel, int64_t phase, T* result) const {
    const Geometry& g = windows_.geometry;
    const Axis &y = g.y, &x = g.x;
    const int64_t phase_y = phase / x.result_step, phase_x = phase % x.result_step;
    for (int64_t i = 0; i < count_; ++i) {
      const Run& run = places_[i].run;
      const int64_t line = run.row * y.result_step + phase_y, column = run.column * x.result_step + phase_x;
      if (line >= y.result) continue;
      const int64_t plane = run.image * g.groups * g.result_channels + channel;
      T* to = result + (plane * y.result + line) * x.result + column;
      const T* from = row + places_[i].lane;
      if (x.result_step == 1) {
        copy_run(to, from, places_[i].length);
        continue;
      }
      const int64_t length = min_of(places_[i].length, ceil_div(x.result - column, x.result_step));
      for (int64_t j = 0; j < length; ++j) to[j * x.result_step] = from[j];
    }
  }

 private:
  struct Place {
    int64_t lane, length;
    Run run;
  };
  const Windows& windows_;
  Scratch<Place> places_;
  int64_t count_ = 0;
};

}  // namespace
}  // namespace sparseprune
