#include <sparseprune/masked_conv2d.h>

#include <optional>

#include "cpu_weight.h"

namespace sparseprune::torch_cpu {
namespace {

using Ints = std::vector<int64_t>;

void check_pair(const Ints& values, const char* name, int64_t lowest) {
  STD_TORCH_CHECK(values.size() == 2, "`", name, "` must have 2 numbers, got ", values.size());
  STD_TORCH_CHECK(values[0] >= lowest && values[1] >= lowest, "`", name, "` must be at least ", lowest,
                  ", got [", values[0], ", ", values[1], "]");
}

void check_sizes(const Ints& sizes, const char* name) {
  STD_TORCH_CHECK(sizes.size() == 4, "`", name, "` must have 4 numbers, got ", sizes.size());
  for (const int64_t size : sizes) STD_TORCH_CHECK(size >= 0, "`", name, "` must be at least 0, got ", size);
}

void check_tensor(const Tensor& tensor, const char* name, const Ints& sizes) {
  check_layout(tensor, name, 4);
  check_real(tensor, name);
  for (int64_t d = 0; d < 4; ++d) check_size(tensor, name, d, sizes[static_cast<size_t>(d)]);
}

Ints sizes_of(const Tensor& tensor, const char* name) {
  check_layout(tensor, name, 4);
  return Ints(tensor.sizes().begin(), tensor.sizes().end());
}

// Checks everything that the sizes of x and of the weight, and the options, must satisfy together.
ConvSize conv_size(const Ints& x, const Ints& weight, const Tensor& words, const Ints& stride,
                   const Ints& padding, const Ints& dilation, int64_t groups) {
  check_pair(stride, "stride", 1);
  check_pair(padding, "padding", 0);
  check_pair(dilation, "dilation", 1);
  STD_TORCH_CHECK(groups >= 1 && x[1] % groups == 0 && weight[0] % groups == 0,
                  "`groups` must divide the numbers of input and output channels (", x[1], ", ", weight[0],
                  "), got ", groups);
  STD_TORCH_CHECK(weight[1] * groups == x[1], "`weight` must have ", x[1] / groups,
                  " input channels a group, got ", weight[1]);
  STD_TORCH_CHECK(weight[2] >= 1 && weight[3] >= 1, "`weight` must have a kernel of at least 1x1, got ",
                  weight[2], "x", weight[3]);
  const int64_t columns = weight[1] * weight[2] * weight[3];
  constexpr int64_t limit = int64_t{1} << 31;
  STD_TORCH_CHECK(columns < limit && weight[0] < limit,
                  "`weight` must have fewer than 2^31 rows and columns, got [", weight[0], ", ", columns,
                  "]");
  check_words(words, "words", weight[0], columns);
  ConvSize size{x[0], x[1], {x[2], x[3]}, weight[0], {0, 0}, {weight[2], weight[3]}, {}, {}, {}, groups};
  for (size_t d = 0; d < 2; ++d) {
    size.stride[d] = stride[d];
    size.padding[d] = padding[d];
    size.dilation[d] = dilation[d];
    const int64_t room = size.input[d] + 2 * padding[d] - dilation[d] * (size.kernel[d] - 1) - 1;
    STD_TORCH_CHECK(room >= 0, "`weight` must have a dilated kernel no larger than the padded input, got ",
                    dilation[d] * (size.kernel[d] - 1) + 1, " against ", size.input[d] + 2 * padding[d]);
    size.output[d] = room / stride[d] + 1;
  }
  const int64_t rows = dilation[0] * (size.kernel[0] - 1) + 1, width = size.input[1] + 2 * padding[1];
  STD_TORCH_CHECK(rows * width < limit / 2,
                  "`weight` must have a dilated kernel over fewer than 2^30 padded pixels, got ", rows, " rows of ", width);
  return size;
}

Ints output_sizes(const ConvSize& size) {
  return {size.batch, size.out_channels, size.output[0], size.output[1]};
}

Tensor forward(const Tensor& x, const Tensor& weight, const char* name, const Tensor& words, const Ints& start,
               const std::optional<Tensor>& bias, const ConvSize& size) {
  check_real(x, "x");
  check_same_type(weight, name, x, "x");
  if (bias) {
    check_layout(*bias, "bias", 1);
    check_size(*bias, "bias", 0, size.out_channels);
    check_same_type(*bias, "bias", x, "x");
  }
  Tensor y = empty(output_sizes(size), x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_conv2d<decltype(isa)::value>(data<T>(x), stored<T>(weight, words, start),
                                                       bias ? data<T>(*bias) : static_cast<const T*>(nullptr),
                                                       mutable_data<T>(y), size, torch_threads());
    });
  });
  return y;
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, const char* name, const Tensor& words, const Ints& start,
                  const Ints& input_size, const ConvSize& size) {
  check_tensor(grad, "grad", output_sizes(size));
  check_same_type(weight, name, grad, "grad");
  Tensor x_grad = empty(input_size, grad.scalar_type());
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_conv2d_input_grad<decltype(isa)::value>(
          data<T>(grad), stored<T>(weight, words, start), mutable_data<T>(x_grad), size, torch_threads());
    });
  });
  return x_grad;
}

Tensor weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words, const Ints& start, const Ints& shape,
                   const ConvSize& size) {
  check_tensor(grad, "grad", output_sizes(size));
  check_real(x, "x");
  check_same_type(x, "x", grad, "grad");
  Tensor result = empty(shape, grad.scalar_type());
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_conv2d_weight_grad<decltype(isa)::value>(
          data<T>(grad), data<T>(x), mutable_stored<T>(result, words, start), size, torch_threads());
    });
  });
  return result;
}

Tensor masked_conv2d(const Tensor& x, const Tensor& weight, const Tensor& words, std::optional<Tensor> bias,
                     Ints stride, Ints padding, Ints dilation, int64_t groups) {
  const Ints weight_sizes = sizes_of(weight, "weight");
  const ConvSize size = conv_size(sizes_of(x, "x"), weight_sizes, words, stride, padding, dilation, groups);
  check_tensor(weight, "weight", weight_sizes);
  return forward(x, weight, "weight", words, {}, bias, size);
}

Tensor masked_conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& words,
                                Ints input_size, Ints stride, Ints padding, Ints dilation, int64_t groups) {
  check_sizes(input_size, "input_size");
  const Ints weight_sizes = sizes_of(weight, "weight");
  const ConvSize size = conv_size(input_size, weight_sizes, words, stride, padding, dilation, groups);
  check_tensor(weight, "weight", weight_sizes);
  return input_grad(grad, weight, "weight", words, {}, input_size, size);
}

Tensor masked_conv2d_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words, Ints weight_size,
                                 Ints stride, Ints padding, Ints dilation, int64_t groups) {
  check_sizes(weight_size, "weight_size");
  const ConvSize size = conv_size(sizes_of(x, "x"), weight_size, words, stride, padding, dilation, groups);
  return weight_grad(grad, x, words, {}, weight_size, size);
}

// The sizes of the weight whose mask `words` is.
Ints packed_sizes(const Tensor& words, const Ints& x, const Ints& kernel, int64_t groups) {
  check_layout(words, "words", 2);
  check_pair(kernel, "kernel", 1);
  STD_TORCH_CHECK(groups >= 1, "`groups` must be at least 1, got ", groups);
  return {words.size(0), x[1] / groups, kernel[0], kernel[1]};
}

Tensor packed_conv2d(const Tensor& x, const Tensor& values, const Tensor& words, std::optional<Tensor> bias,
                     Ints kernel, Ints stride, Ints padding, Ints dilation, int64_t groups) {
  check_values(values);
  const Ints sizes = sizes_of(x, "x"), weight_sizes = packed_sizes(words, sizes, kernel, groups);
  const ConvSize size = conv_size(sizes, weight_sizes, words, stride, padding, dilation, groups);
  return forward(x, values, "values", words, packed_starts(words, values.size(0)), bias, size);
}

Tensor packed_conv2d_input_grad(const Tensor& grad, const Tensor& values, const Tensor& words, Ints input_size,
                                Ints kernel, Ints stride, Ints padding, Ints dilation, int64_t groups) {
  check_sizes(input_size, "input_size");
  check_values(values);
  const Ints weight_sizes = packed_sizes(words, input_size, kernel, groups);
  const ConvSize size = conv_size(input_size, weight_sizes, words, stride, padding, dilation, groups);
  return input_grad(grad, values, "values", words, packed_starts(words, values.size(0)), input_size, size);
}

Tensor packed_conv2d_values_grad(const Tensor& grad, const Tensor& x, const Tensor& words, int64_t kept, Ints kernel,
                                 Ints stride, Ints padding, Ints dilation, int64_t groups) {
  const Ints sizes = sizes_of(x, "x"), weight_sizes = packed_sizes(words, sizes, kernel, groups);
  const ConvSize size = conv_size(sizes, weight_sizes, words, stride, padding, dilation, groups);
  return weight_grad(grad, x, words, packed_starts(words, kept), {kept}, size);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("masked_conv2d", TORCH_BOX(&masked_conv2d));
  m.impl("masked_conv2d_input_grad", TORCH_BOX(&masked_conv2d_input_grad));
  m.impl("masked_conv2d_weight_grad", TORCH_BOX(&masked_conv2d_weight_grad));
  m.impl("packed_conv2d", TORCH_BOX(&packed_conv2d));
  m.impl("packed_conv2d_input_grad", TORCH_BOX(&packed_conv2d_input_grad));
  m.impl("packed_conv2d_values_grad", TORCH_BOX(&packed_conv2d_values_grad));
}

}  // namespace sparseprune::torch_cpu
