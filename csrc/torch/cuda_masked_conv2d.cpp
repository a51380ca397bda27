// masked_conv2d and its gradients on CUDA tensors.
#include "cuda_common.h"

#include <climits>

#include "sparseprune/cuda/masked_conv2d.h"

namespace sparseprune::torch_cuda {
namespace {

using Ints = std::vector<int64_t>;

void check_count(const Ints& values, const char* name, size_t count) {
  STD_TORCH_CHECK(values.size() == count, "`", name, "` must hold ", count, " integers, got ", values.size());
}

// Extents of one spatial dimension, and its output's.
struct Axis {
  int size, kernel, stride, padding, dilation, out;

  Axis(const char* name, int64_t size_, int64_t kernel_, int64_t stride_, int64_t padding_,
       int64_t dilation_) {
    STD_TORCH_CHECK(size_ >= 0 && kernel_ >= 1, "the ", name,
                    " and the kernel's must be at least 0 and 1, got ", size_, " and ", kernel_);
    STD_TORCH_CHECK(stride_ >= 1 && padding_ >= 0 && dilation_ >= 1,
                    "`stride`, `padding` and `dilation` must be at least 1, 0 and 1, got ", stride_, ", ",
                    padding_, " and ", dilation_);
    // Every coordinate lies between -padding and size + padding, or in the kernel's span: the kernels use 32
    // bits.
    const int64_t reach = INT_MAX / 2;
    STD_TORCH_CHECK(size_ <= reach && padding_ <= reach / 2 && stride_ <= reach && kernel_ <= reach &&
                        dilation_ <= reach && dilation_ * kernel_ <= reach,
                    "the ", name, ", padding and dilated kernel must be under 2^30, got ", size_, ", ",
                    padding_, " and ", dilation_, " * ", kernel_);
    const int64_t span = size_ + 2 * padding_ - dilation_ * (kernel_ - 1) - 1;
    STD_TORCH_CHECK(span >= 0, "the padded ", name, " must be at least the dilated kernel's, got ",
                    size_ + 2 * padding_, " and ", dilation_ * (kernel_ - 1) + 1);
    size = static_cast<int>(size_);
    kernel = static_cast<int>(kernel_);
    stride = static_cast<int>(stride_);
    padding = static_cast<int>(padding_);
    dilation = static_cast<int>(dilation_);
    out = static_cast<int>(span / stride_ + 1);
  }
};

// Checks everything that the sizes of the input and the weight and the options determine.
cuda::Conv2dShape shape_of(const Ints& input, const Ints& weight, const Ints& stride, const Ints& padding,
                           const Ints& dilation, int64_t groups) {
  check_count(input, "input_size", 4);
  check_count(weight, "weight_size", 4);
  check_count(stride, "stride", 2);
  check_count(padding, "padding", 2);
  check_count(dilation, "dilation", 2);
  STD_TORCH_CHECK(groups >= 1 && input[1] == weight[1] * groups && weight[0] % groups == 0,
                  "`groups` must divide the channels into the weight's shape, got ", groups, " groups, ",
                  input[1], " channels and a weight of [", weight[0], ", ", weight[1], ", ", weight[2], ", ",
                  weight[3], "]");
  const Axis down("height", input[2], weight[2], stride[0], padding[0], dilation[0]);
  const Axis across("width", input[3], weight[3], stride[1], padding[1], dilation[1]);
  return {input[0],     input[1],       weight[0],     groups,         down.size,   across.size,
          down.kernel,  across.kernel,  down.out,      across.out,     down.stride, across.stride,
          down.padding, across.padding, down.dilation, across.dilation};
}

Ints sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }
Ints output_size(const cuda::Conv2dShape& s) { return {s.batch, s.out_channels, s.out_height, s.out_width}; }

void check_output(const Tensor& grad, const cuda::Conv2dShape& shape) {
  const Ints expected = output_size(shape);
  for (int64_t dim = 0; dim < 4; ++dim) check_size(grad, "grad", dim, expected[static_cast<size_t>(dim)]);
}

void check_weight_words(const Tensor& words, const cuda::Conv2dShape& s, const Tensor& first) {
  check_words(words, "words", s.out_channels, s.channels / s.groups * s.kernel_h * s.kernel_w, first);
}

Tensor masked_conv2d(const Tensor& x, const Tensor& weight, const Tensor& words,
                     const std::optional<Tensor>& bias, const Ints& stride, const Ints& padding,
                     const Ints& dilation, int64_t groups) {
  check_layout(x, "x", 4, x);
  check_layout(weight, "weight", 4, x);
  check_same_type(weight, "weight", x);
  const Dtype dtype = dtype_of(x, "x");
  const auto shape = shape_of(sizes_of(x), sizes_of(weight), stride, padding, dilation, groups);
  check_weight_words(words, shape, x);
  const void* bias_or_null = bias_data(bias, x, shape.out_channels);
  const Launcher launcher(x);
  Tensor y = empty(x, output_size(shape), x.scalar_type());
  launcher.check(cuda::masked_conv2d(x.const_data_ptr(), weight.const_data_ptr(), words_data(words),
                                     bias_or_null, y.mutable_data_ptr(), shape, dtype, launcher.stream()),
                 "masked_conv2d");
  return y;
}

Tensor masked_conv2d_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& words,
                                const Ints& input_size, const Ints& stride, const Ints& padding,
                                const Ints& dilation, int64_t groups) {
  check_layout(grad, "grad", 4, grad);
  check_layout(weight, "weight", 4, grad);
  check_same_type(weight, "weight", grad);
  const Dtype dtype = dtype_of(grad, "grad");
  const auto shape = shape_of(input_size, sizes_of(weight), stride, padding, dilation, groups);
  check_output(grad, shape);
  check_weight_words(words, shape, grad);
  const Launcher launcher(grad);
  Tensor input_grad = empty(grad, input_size, grad.scalar_type());
  launcher.check(
      cuda::masked_conv2d_input_grad(grad.const_data_ptr(), weight.const_data_ptr(), words_data(words),
                                     input_grad.mutable_data_ptr(), shape, dtype, launcher.stream()),
      "masked_conv2d_input_grad");
  return input_grad;
}

Tensor masked_conv2d_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words,
                                 const Ints& weight_size, const Ints& stride, const Ints& padding,
                                 const Ints& dilation, int64_t groups) {
  check_layout(grad, "grad", 4, grad);
  check_layout(x, "x", 4, grad);
  check_same_type(x, "x", grad);
  const Dtype dtype = dtype_of(grad, "grad");
  const auto shape = shape_of(sizes_of(x), weight_size, stride, padding, dilation, groups);
  check_output(grad, shape);
  check_weight_words(words, shape, grad);
  const Launcher launcher(grad);
  Tensor weight_grad = empty(grad, weight_size, grad.scalar_type());
  launcher.check(
      cuda::masked_conv2d_weight_grad(grad.const_data_ptr(), x.const_data_ptr(), words_data(words),
                                      weight_grad.mutable_data_ptr(), shape, dtype, launcher.stream()),
      "masked_conv2d_weight_grad");
  return weight_grad;
}

}  // namespace
}  // namespace sparseprune::torch_cuda

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CUDA, m) {
  m.impl("masked_conv2d", TORCH_BOX(&sparseprune::torch_cuda::masked_conv2d));
  m.impl("masked_conv2d_input_grad", TORCH_BOX(&sparseprune::torch_cuda::masked_conv2d_input_grad));
  m.impl("masked_conv2d_weight_grad", TORCH_BOX(&sparseprune::torch_cuda::masked_conv2d_weight_grad));
}
