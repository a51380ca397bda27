// Convolution as products over panels: blocks of output positions, their im2col panels built on the fly, and
// back.
#pragma once

#include <sparseprune/masked_conv2d.h>

#include "panels.h"

namespace sparseprune {
namespace {

// A 1x1 convolution without stride or padding knows no rows: its image is one line.
inline ConvSize as_lines(ConvSize size) {
  bool plain = true;
  for (int d = 0; d < 2; ++d)
    plain = plain && size.kernel[d] == 1 && size.stride[d] == 1 && size.padding[d] == 0;
  if (plain) {
    size.input[1] *= size.input[0];
    size.output[1] *= size.output[0];
    size.input[0] = size.output[0] = 1;
  }
  return size;
}

// A stretch of one output row within a block: positions [0, length) are lanes [lane, lane + length).
struct Run {
  int64_t image;
  int64_t y;
  int64_t x;
  int64_t length;
  int64_t lane;
};

// The output positions of the batch, cut into blocks of at most `width` that depend on the sizes alone: small
// images share blocks within a set of images, no block crosses two sets.
struct Blocks {
  Blocks(const ConvSize& size, int64_t width)
      : width(width),
        positions(size.output[0] * size.output[1]),
        set_images(max_of(1, min_of(ceil_div(4 * width, positions), size.batch))),
        sets(ceil_div(size.batch, set_images)),
        set_blocks(ceil_div(set_images * positions, width)),
        batch(size.batch) {}

  int64_t count() const { return sets * set_blocks; }
  int64_t set_positions(int64_t set) const {
    return min_of(set_images, batch - set * set_images) * positions;
  }
  // Of block b of a set; 0 for the blocks that a smaller last set lacks.
  int64_t valid(int64_t set, int64_t block) const {
    return max_of(0, min_of(width, set_positions(set) - block * width));
  }

  int64_t width;
  int64_t positions;
  int64_t set_images;
  int64_t sets;
  int64_t set_blocks;
  int64_t batch;
};

// body(run) over the stretches of a block within output rows of `row_length` positions.
template <class Body>
inline void for_runs(const Blocks& blocks, int64_t set, int64_t block, int64_t row_length, const Body& body) {
  const int64_t valid = blocks.valid(set, block);
  for (int64_t lane = 0; lane < valid;) {
    const int64_t q = block * blocks.width + lane, p = q % blocks.positions;
    const int64_t length = min_of(row_length - p % row_length, valid - lane);
    body(Run{set * blocks.set_images + q / blocks.positions, p / row_length, p % row_length, length, lane});
    lane += length;
  }
}

// Where the positions of a run lie in the input under one tap (kernel row and column): position i, for i in
// [begin, end), at element x + i * stride of a plane; the others fall on padding.
struct Stretch {
  int64_t x;
  int64_t begin;
  int64_t end;
  int64_t length;
  int64_t lane;
};

// The stretches of a block, tap by tap. Computed once a block: every channel repeats them.
class Taps {
 public:
  Taps(const ConvSize& size, const Blocks& blocks)
      : size_(size), blocks_(blocks), stretches_(size.kernel[0] * size.kernel[1] * blocks.width) {}

  void set(int64_t set, int64_t block) {
    runs_ = 0;
    for_runs(blocks_, set, block, size_.output[1], [&](const Run& run) {
      int64_t tap = 0;
      for (int64_t i = 0; i < size_.kernel[0]; ++i) {
        for (int64_t j = 0; j < size_.kernel[1]; ++j)
          stretches_[tap++ * blocks_.width + runs_] = stretch(run, i, j);
      }
      ++runs_;
    });
  }

  // body(stretch) over those of a tap.
  template <class Body>
  void for_tap(int64_t tap, const Body& body) const {
    const Stretch* stretches = stretches_.get() + tap * blocks_.width;
    for (int64_t run = 0; run < runs_; ++run) body(stretches[run]);
  }

 private:
  Stretch stretch(const Run& run, int64_t kernel_y, int64_t kernel_x) const {
    const int64_t stride = size_.stride[1], height = size_.input[0], width = size_.input[1];
    const int64_t y = run.y * size_.stride[0] - size_.padding[0] + kernel_y * size_.dilation[0];
    const int64_t x = run.x * stride - size_.padding[1] + kernel_x * size_.dilation[1];
    if (y < 0 || y >= height || x >= width) return {0, 0, 0, run.length, run.lane};
    const int64_t begin = x >= 0 ? 0 : min_of(run.length, ceil_div(-x, stride));
    const int64_t end = max_of(begin, min_of(run.length, ceil_div(width - x, stride)));
    return {(run.image * size_.in_channels * height + y) * width + x, begin, end, run.length, run.lane};
  }

  const ConvSize& size_;
  const Blocks& blocks_;
  Scratch<Stretch> stretches_;
  int64_t runs_ = 0;
};

// out[i] = from[i] for i in [begin, end), 0 elsewhere in [0, length); nothing outside is read or written.
template <class T>
inline void copy_inside(T* out, const T* from, int64_t begin, int64_t end, int64_t length) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < length; i += kLanes<T>) {
    const uint64_t write = low_bits(min_of(kLanes<T>, length - i));
    const uint64_t read =
        low_bits(min_of(kLanes<T>, max_of(0, end - i))) & ~low_bits(min_of(kLanes<T>, max_of(0, begin - i)));
    if constexpr (sizeof(T) == 4) {
      const __m512 data = _mm512_maskz_loadu_ps(static_cast<__mmask16>(read), from + i);
      _mm512_mask_storeu_ps(out + i, static_cast<__mmask16>(write), data);
    } else {
      const __m512d data = _mm512_maskz_loadu_pd(static_cast<__mmask8>(read), from + i);
      _mm512_mask_storeu_pd(out + i, static_cast<__mmask8>(write), data);
    }
  }
#else
  for (int64_t i = 0; i < begin; ++i) out[i] = 0;
  for (int64_t i = begin; i < end; ++i) out[i] = from[i];
  for (int64_t i = end; i < length; ++i) out[i] = 0;
#endif
}

// The im2col panel of channels [first, last) for a block of `valid` positions: rows (channel, tap) of `width`
// lanes.
template <class T>
void build_panel(const T* x, const ConvSize& size, const Taps& taps, int64_t first, int64_t last,
                 int64_t valid, int64_t width, T* panel) {
  const int64_t count = size.kernel[0] * size.kernel[1], plane = size.input[0] * size.input[1];
  const int64_t stride = size.stride[1];
  T* row = panel;
  for (int64_t channel = first; channel < last; ++channel) {
    for (int64_t tap = 0; tap < count; ++tap, row += width) {
      taps.for_tap(tap, [&](const Stretch& stretch) {
        T* out = row + stretch.lane;
        const T* from = x + channel * plane + stretch.x;
        if (stride == 1) {
          copy_inside(out, from, stretch.begin, stretch.end, stretch.length);
        } else {
          for (int64_t i = 0; i < stretch.begin; ++i) out[i] = 0;
          for (int64_t i = stretch.begin; i < stretch.end; ++i) out[i] = from[i * stride];
          for (int64_t i = stretch.end; i < stretch.length; ++i) out[i] = 0;
        }
      });
      for (int64_t i = valid; i < width; ++i) row[i] = 0;
    }
  }
}

// Adds one panel row, that of a channel and a tap, to the channel's plane in every image of the block.
template <class T>
inline void add_row(const T* row, const ConvSize& size, const Taps& taps, int64_t channel, int64_t tap,
                    T* x_grad) {
  T* plane = x_grad + channel * size.input[0] * size.input[1];
  const int64_t stride = size.stride[1];
  taps.for_tap(tap, [&](const Stretch& stretch) {
    T* to = plane + stretch.x;
    const T* from = row + stretch.lane;
    if (stride == 1) {
      for (int64_t i = stretch.begin; i < stretch.end; ++i) to[i] += from[i];
    } else {
      for (int64_t i = stretch.begin; i < stretch.end; ++i) to[i * stride] += from[i];
    }
  });
}

// Panels of an output-shaped tensor, block by block: [channels][lanes of the block], zero beyond its
// positions.
template <class T>
void pack_output_panels(const T* grad, const ConvSize& size, const Blocks& blocks, T* panels,
                        const Parallel& parallel) {
  const int64_t block_size = size.out_channels * blocks.width;
  const int64_t grain = grain_of(block_size * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, blocks.count(), grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t set = task / blocks.set_blocks, block = task % blocks.set_blocks;
      const int64_t valid = blocks.valid(set, block);
      with_panel<T>(valid, [&](auto nv) {
        constexpr int64_t width = kPanel<T, decltype(nv)::value>;
        T* out = panels + task * block_size;
        for (int64_t channel = 0; channel < size.out_channels; ++channel, out += width) {
          for_runs(blocks, set, block, blocks.positions, [&](const Run& run) {
            const T* from = grad + (run.image * size.out_channels + channel) * blocks.positions + run.x;
            copy_inside(out + run.lane, from, 0, run.length, run.length);
          });
          for (int64_t i = valid; i < width; ++i) out[i] = 0;
        }
      });
    }
  });
}

}  // namespace
}  // namespace sparseprune
