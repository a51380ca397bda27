// Masked 2-D convolution as tiled products whose operands are computed from the images while they are loaded
// (implicit im2col). Per group, with P = batch * out_height * out_width and Q = channels / groups * kernel
// size:
//
//   y  [O/g, P]   = W [O/g, Q] patches(x) [Q, P]          depth Q
//   dx [C/g, P_x] = W' [C/g, O/g * kernel] gather(g)      depth O/g * kernel, P_x = batch * height * width
//   dW [O/g, Q]   = g [O/g, P] patches(x)^T               depth P
//
// Budget: 128 registers, 33280 bytes of shared memory, no spills.
#include "sparseprune/cuda/masked_conv2d.h"

#include "sparseprune/cuda/mask_bits.h"
#include "tile_gemm.cuh"

namespace sparseprune::cuda {
namespace {

// The sizes of one call, as every kernel needs them.
struct Geometry : Conv2dShape {
  int64_t kernel, group_channels, group_outputs;  // kernel = kernel_h * kernel_w
  int64_t weight_columns, row_words;              // weight_columns = group_channels * kernel
  int64_t in_plane, out_plane;                    // pixels of one channel of one image

  explicit Geometry(const Conv2dShape& shape)
      : Conv2dShape(shape),
        kernel(int64_t{shape.kernel_h} * shape.kernel_w),
        group_channels(shape.channels / shape.groups),
        group_outputs(shape.out_channels / shape.groups),
        weight_columns(group_channels * kernel),
        row_words(words_per_row(weight_columns)),
        in_plane(int64_t{shape.height} * shape.width),
        out_plane(int64_t{shape.out_height} * shape.out_width) {}
};

// Where a weight element taps the image: offset of its channel's plane and displacement from the output's
// origin.
struct Tap {
  int64_t plane;
  int dy, dx;
  bool inside;
};

// A pixel of all images: offset of its image and its coordinates.
struct Site {
  int64_t image;
  int y, x;
  bool inside;
};

__device__ Tap tap_of(const Geometry& g, int64_t index, int64_t count, int64_t first_channel, int64_t plane) {
  const auto [channel, in_kernel] = divide(index, g.kernel);
  const auto [r, s] = divide(in_kernel, g.kernel_w);
  return {(first_channel + channel) * plane, static_cast<int>(r) * g.dilation_h - g.padding_h,
          static_cast<int>(s) * g.dilation_w - g.padding_w, index < count};
}

__device__ Site site_of(int64_t index, int64_t count, int64_t plane, int width, int64_t image_size) {
  const auto [image, pixel] = divide(index, plane);
  const auto [y, x] = divide(pixel, width);
  return {image * image_size, static_cast<int>(y), static_cast<int>(x), index < count};
}

// patches(x): rows are the weight's columns (channel, r, s) of one group, columns are output pixels.
template <class T>
struct Patches {
  using Value = Acc<T>;
  const T* x;
  Geometry g;
  int64_t first_channel;

  __device__ Tap row(int64_t index) const {
    return tap_of(g, index, g.weight_columns, first_channel, g.in_plane);
  }
  __device__ Site column(int64_t index) const {
    Site site = site_of(index, g.batch * g.out_plane, g.out_plane, g.out_width, g.channels * g.in_plane);
    site.y *= g.stride_h;
    site.x *= g.stride_w;
    return site;
  }
  __device__ Value at(const Tap& tap, const Site& site) const {
    const int y = site.y + tap.dy, x_ = site.x + tap.dx;
    if (!tap.inside || !site.inside || y < 0 || y >= g.height || x_ < 0 || x_ >= g.width) return Value(0);
    return widen(x[tap.plane + site.image + int64_t{y} * g.width + x_]);
  }
};

// gather(g): rows are (output channel, r, s) of one group, columns are input pixels. An element is the
// gradient of the output whose window meets the pixel with that tap, if there is one: y_in = y_out * stride +
// r * dilation - pad.
template <class T>
struct GradPatches {
  using Value = Acc<T>;
  const T* grad;
  Geometry g;
  int64_t first_output;

  __device__ Tap row(int64_t index) const {
    return tap_of(g, index, g.group_outputs * g.kernel, first_output, g.out_plane);
  }
  __device__ Site column(int64_t index) const {
    return site_of(index, g.batch * g.in_plane, g.in_plane, g.width, g.out_channels * g.out_plane);
  }
  __device__ Value at(const Tap& tap, const Site& site) const {
    if (!tap.inside || !site.inside) return Value(0);
    const int top = site.y - tap.dy, left = site.x - tap.dx;
    if (top < 0 || left < 0) return Value(0);
    const int y = top / g.stride_h, x = left / g.stride_w;
    if (y * g.stride_h != top || x * g.stride_w != left || y >= g.out_height || x >= g.out_width)
      return Value(0);
    return widen(grad[tap.plane + site.image + int64_t{y} * g.out_width + x]);
  }
};

// The weight by taps: rows are (output channel, r, s) of one group, columns are its input channels. The bits
// of 32 channels lie in as many consecutive words as the kernel has taps, so a warp's load of them is one
// request.
template <class T>
struct WeightByTap {
  using Value = Acc<T>;
  const T* weight;
  const uint32_t* words;
  Geometry g;

  struct Row {
    int64_t data, words, in_kernel;
    bool inside;
  };
  struct Column {
    int64_t offset;
    bool inside;
  };
  __device__ Row row(int64_t index) const {
    const auto [output, in_kernel] = divide(index, g.kernel);
    return {output * g.weight_columns, output * g.row_words, in_kernel, index < g.group_outputs * g.kernel};
  }
  __device__ Column column(int64_t index) const { return {index * g.kernel, index < g.group_channels}; }
  __device__ Value at(const Row& row, const Column& column) const {
    if (!row.inside || !column.inside) return Value(0);
    const int64_t element = column.offset + row.in_kernel;
    const bool keep = (words[row.words + element / 32] >> (element % 32)) & 1u;
    return keep ? widen(weight[row.data + element]) : Value(0);
  }
};

// The output's gradient: rows are output channels of one group, columns are output pixels.
template <class T>
struct Channels {
  using Value = Acc<T>;
  const T* data;
  Geometry g;
  int64_t first_channel;

  struct Position {
    int64_t offset;
    bool inside;
  };
  __device__ Position row(int64_t index) const {
    return {(first_channel + index) * g.out_plane, index < g.group_outputs};
  }
  __device__ Position column(int64_t index) const {
    const auto [image, pixel] = divide(index, g.out_plane);
    return {image * g.out_channels * g.out_plane + pixel, index < g.batch * g.out_plane};
  }
  __device__ Value at(const Position& row, const Position& column) const {
    return row.inside && column.inside ? widen(data[row.offset + column.offset]) : Value(0);
  }
};

// A result of [images, all_channels, plane]: rows are the channels of one group, columns the pixels of all
// images.
template <class T>
struct ChannelsOut {
  T* data;
  const T* bias;
  int64_t rows, columns, plane, all_channels, first_channel;

  __device__ uint32_t kept(int64_t, int64_t) const { return ~0u; }
  __device__ int64_t address(int64_t column) const {
    const auto [image, pixel] = divide(column, plane);
    return image * all_channels * plane + pixel;
  }
  __device__ void put(int64_t row, int64_t, int64_t address, Acc<T> value) const {
    const int64_t channel = first_channel + row;
    data[channel * plane + address] = narrow<T>(bias == nullptr ? value : value + widen(bias[channel]));
  }
};

template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks)
    forward_kernel(const T* x, const T* weight, const uint32_t* words, const T* bias, T* y, Geometry g) {
  const int64_t pixels = g.batch * g.out_plane;
  for_each_tile(g.groups, g.group_outputs, pixels, [&](int64_t group, int64_t row0, int64_t column0) {
    const int64_t first = group * g.group_outputs;
    const Matrix<T> a{weight + first * g.weight_columns, words + first * g.row_words, g.group_outputs,
                      g.weight_columns, g.row_words};
    const Patches<T> b{x, g, group * g.group_channels};
    const ChannelsOut<T> out{y, bias, g.group_outputs, pixels, g.out_plane, g.out_channels, first};
    gemm_tile<Depth::kColumns, Depth::kRows, Acc<T>>(a, b, out, row0, column0, g.weight_columns);
  });
}

template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks)
    input_grad_kernel(const T* grad, const T* weight, const uint32_t* words, T* input_grad, Geometry g) {
  const int64_t pixels = g.batch * g.in_plane;
  for_each_tile(g.groups, g.group_channels, pixels, [&](int64_t group, int64_t row0, int64_t column0) {
    const int64_t first = group * g.group_outputs;
    const WeightByTap<T> a{weight + first * g.weight_columns, words + first * g.row_words, g};
    const GradPatches<T> b{grad, g, first};
    const ChannelsOut<T> out{input_grad, nullptr,    g.group_channels,        pixels,
                             g.in_plane, g.channels, group * g.group_channels};
    gemm_tile<Depth::kRows, Depth::kRows, Acc<T>>(a, b, out, row0, column0, g.group_outputs * g.kernel);
  });
}

template <class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks)
    weight_grad_kernel(const T* grad, const T* x, const uint32_t* words, T* weight_grad, Geometry g) {
  for_each_tile(
      g.groups, g.group_outputs, g.weight_columns, [&](int64_t group, int64_t row0, int64_t column0) {
        const int64_t first = group * g.group_outputs;
        const Channels<T> a{grad, g, first};
        const Patches<T> b{x, g, group * g.group_channels};
        const MatrixOut<T> out{weight_grad + first * g.weight_columns,
                               nullptr,
                               words + first * g.row_words,
                               g.group_outputs,
                               g.weight_columns,
                               g.row_words};
        gemm_tile<Depth::kColumns, Depth::kColumns, Acc<T>>(a, b, out, row0, column0, g.batch * g.out_plane);
      });
}

dim3 tiles_grid(const Geometry& g, int64_t rows, int64_t columns) {
  return grid_for(g.groups * tiles_of(rows) * tiles_of(columns));
}

}  // namespace

cudaError_t masked_conv2d(const void* x, const void* weight, const uint32_t* words, const void* bias, void* y,
                          const Conv2dShape& shape, Dtype dtype, cudaStream_t stream) {
  const Geometry g(shape);
  const int64_t pixels = g.batch * g.out_plane;
  if (g.out_channels == 0 || pixels == 0) return cudaSuccess;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(forward_kernel<T>, tiles_grid(g, g.group_outputs, pixels), kGemmThreads, stream,
                  static_cast<const T*>(x), static_cast<const T*>(weight), words, static_cast<const T*>(bias),
                  static_cast<T*>(y), g);
  });
}

cudaError_t masked_conv2d_input_grad(const void* grad, const void* weight, const uint32_t* words,
                                     void* input_grad, const Conv2dShape& shape, Dtype dtype,
                                     cudaStream_t stream) {
  const Geometry g(shape);
  const int64_t pixels = g.batch * g.in_plane;
  if (g.channels == 0 || pixels == 0) return cudaSuccess;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(input_grad_kernel<T>, tiles_grid(g, g.group_channels, pixels), kGemmThreads, stream,
                  static_cast<const T*>(grad), static_cast<const T*>(weight), words,
                  static_cast<T*>(input_grad), g);
  });
}

cudaError_t masked_conv2d_weight_grad(const void* grad, const void* x, const uint32_t* words,
                                      void* weight_grad, const Conv2dShape& shape, Dtype dtype,
                                      cudaStream_t stream) {
  const Geometry g(shape);
  if (g.out_channels == 0 || g.weight_columns == 0) return cudaSuccess;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch(weight_grad_kernel<T>, tiles_grid(g, g.group_outputs, g.weight_columns), kGemmThreads,
                  stream, static_cast<const T*>(grad), static_cast<const T*>(x), words,
                  static_cast<T*>(weight_grad), g);
  });
}

}  // namespace sparseprune::cuda
