// A convolution as sums over one flat axis. Grid positions of a tile lie on rows of a common pitch, each source channel
// is a padded plane of the same pitch, and so every tap is one constant shift:
//
//   out[position] = sum_s value[s] plane[channel[s]][position + shift[s]]
//
// The positions between rows and images hold nothing that is used. A direction that moves by several source elements a
// position (the stride of a forward pass) reads planes of every so-manieth element, its phases; one that moves by a
// fraction (the stride of an input gradient) has results for every so-manieth element, its phases again.
#pragma once

#include <sparseprune/masked_conv2d.h>

#include "scratch.h"
#include "simd.h"

namespace sparseprune {
namespace {

inline int64_t modulo(int64_t a, int64_t b) { return (a % b + b) % b; }

// One direction.
struct Axis {
  int64_t source;        // elements
  int64_t result;        // elements
  int64_t source_step;   // source elements a position
  int64_t result_step;   // result elements a position
  int64_t grid;          // positions
  int64_t kernel;        // taps
  int64_t first, along;  // tap k adds first + k * along source elements
  int64_t low, high;     // bounds of the taps' shifts, and of 0

  Axis(int64_t source, int64_t result, int64_t source_step, int64_t result_step, int64_t kernel, int64_t first,
       int64_t along)
      : source(source),
        result(result),
        source_step(source_step),
        result_step(result_step),
        grid(ceil_div(result, result_step)),
        kernel(kernel),
        first(first),
        along(along),
        low(min_of(0, min_of(shift(0), shift(kernel - 1)))),
        high(max_of(0, max_of(shift(0), shift(kernel - 1)))) {}

  int64_t extra(int64_t tap) const { return first + tap * along; }
  // Which of the source's phases a tap reads, and which of the result's it is summed into.
  int64_t source_phase(int64_t tap) const { return modulo(extra(tap), source_step); }
  int64_t result_phase(int64_t tap) const { return modulo(-extra(tap), result_step); }
  // In positions; one of the steps is 1.
  int64_t shift(int64_t tap) const {
    return (extra(tap) - source_phase(tap) + result_phase(tap)) / (source_step * result_step);
  }
  // The source phases that taps read, which are those of the first taps.
  int64_t source_phases() const {
    for (int64_t count = 1; count < min_of(kernel, source_step); ++count) {
      if (source_phase(count) == source_phase(0)) return count;
    }
    return min_of(kernel, source_step);
  }
  int64_t phase_slot(int64_t tap) const { return tap % source_phases(); }
  // Positions of which a source phase has elements, beyond which there is padding.
  int64_t length() const { return ceil_div(source, source_step); }
  // From one row (image) to the next of a tile with `count` positions a row (rows an image). Where all are in the
  // tile, the padding after one is that before the next.
  int64_t pitch(int64_t count) const {
    const int64_t valid = count == grid ? min_of(length(), count + high) : count + high;
    return max_of(count + high, valid - low);
  }
};

struct Geometry {
  int64_t batch, groups;
  int64_t source_channels, result_channels;  // of a group
  Axis y, x;

  int64_t taps() const { return y.kernel * x.kernel; }
  int64_t source_phases() const { return y.source_phases() * x.source_phases(); }
  int64_t result_phases() const { return y.result_step * x.result_step; }
  int64_t columns(int64_t channels) const { return channels * taps(); }
};

// A 1x1 convolution without stride or padding knows no rows: its image is one line.
inline ConvSize as_lines(ConvSize size) {
  bool plain = true;
  for (int d = 0; d < 2; ++d) plain = plain && size.kernel[d] == 1 && size.stride[d] == 1 && size.padding[d] == 0;
  if (plain) {
    size.input[1] *= size.input[0];
    size.output[1] *= size.output[0];
    size.input[0] = size.output[0] = 1;
  }
  return size;
}

inline Geometry forward_geometry(const ConvSize& size) {
  const auto axis = [&](int d) {
    return Axis(size.input[d], size.output[d], size.stride[d], 1, size.kernel[d], -size.padding[d], size.dilation[d]);
  };
  return {size.batch, size.groups, size.in_channels / size.groups, size.out_channels / size.groups, axis(0), axis(1)};
}

// From the gradient of the output to that of the input.
inline Geometry backward_geometry(const ConvSize& size) {
  const auto axis = [&](int d) {
    return Axis(size.output[d], size.input[d], 1, size.stride[d], size.kernel[d], size.padding[d], -size.dilation[d]);
  };
  return {size.batch, size.groups, size.out_channels / size.groups, size.in_channels / size.groups, axis(0), axis(1)};
}

// What a tile holds: whole images, or some rows of one, or some positions of one row.
struct Window {
  int64_t image, images;
  int64_t row, rows;
  int64_t column, columns;

  bool same_shape(const Window& other) const {
    return images == other.images && rows == other.rows && columns == other.columns;
  }
};

// The grid cut into windows of about so many positions (rows in multiples of `unit`), which depend on the sizes alone.
struct Windows {
  Windows(const Geometry& g, int64_t positions, int64_t unit) : geometry(g) {
    const int64_t line = g.x.pitch(g.x.grid);
    const auto even = [](int64_t all, int64_t most) { return ceil_div(all, ceil_div(all, max_of(1, most))); };
    columns = line <= positions ? g.x.grid : min_of(g.x.grid, ceil_div(even(g.x.grid, positions), unit) * unit);
    rows = columns < g.x.grid ? 1 : even(g.y.grid, positions / line);
    images = rows < g.y.grid ? 1 : max_of(1, min_of(g.batch, positions / (line * g.y.pitch(g.y.grid))));
    column_windows = ceil_div(g.x.grid, columns);
    row_windows = ceil_div(g.y.grid, rows);
  }
  int64_t count() const { return ceil_div(geometry.batch, images) * row_windows * column_windows; }
  Window operator[](int64_t i) const {
    const int64_t column = i % column_windows * columns, row = i / column_windows % row_windows * rows;
    const int64_t image = i / column_windows / row_windows * images;
    return {image,
            min_of(images, geometry.batch - image),
            row,
            min_of(rows, geometry.y.grid - row),
            column,
            min_of(columns, geometry.x.grid - column)};
  }
  // The same in every window, so that shifts are.
  int64_t line_pitch() const { return geometry.x.pitch(columns); }
  int64_t image_pitch() const { return geometry.y.pitch(rows); }
  // Of a window, from its first to its last.
  int64_t positions(const Window& w) const {
    return ((w.images - 1) * image_pitch() + w.rows - 1) * line_pitch() + w.columns;
  }
  int64_t most_positions() const { return positions({0, images, 0, rows, 0, columns}); }
  int64_t shift(int64_t tap_y, int64_t tap_x) const {
    const Axis &y = geometry.y, &x = geometry.x;
    return (y.shift(tap_y) - y.low) * line_pitch() + x.shift(tap_x) - x.low;
  }
  int64_t most_shift() const {
    return (geometry.y.high - geometry.y.low) * line_pitch() + geometry.x.high - geometry.x.low;
  }

  Geometry geometry;
  int64_t columns, rows, images, column_windows, row_windows;
};

// Positions beside each other in a window and in the result.
struct Run {
  int64_t position, length;
  int64_t image, row, column;
};

// body(run) over the rows of a window, as far as they are in positions [begin, end).
template <class Body>
inline void for_runs(const Windows& windows, const Window& w, int64_t begin, int64_t end, const Body& body) {
  const int64_t line = windows.line_pitch(), lines = windows.image_pitch();
  for (int64_t i = begin / line; i * line < end; ++i) {
    const int64_t image = i / lines, row = i % lines, start = max_of(begin, i * line);
    const int64_t stop = min_of(end, i * line + w.columns);
    if (image >= w.images || row >= w.rows || start >= stop) continue;
    body(Run{start, stop - start, w.image + image, w.row + row, w.column + start - i * line});
  }
}

}  // namespace
}  // namespace sparseprune
