// masked_linear and its gradients on CUDA tensors.
#include "cuda_common.h"

#include "sparseprune/cuda/masked_linear.h"

namespace sparseprune::torch_cuda {
namespace {

Tensor masked_linear(const Tensor& x, const Tensor& weight, const Tensor& words,
                     const std::optional<Tensor>& bias) {
  check_layout(x, "x", 2, x);
  check_layout(weight, "weight", 2, x);
  const cuda::LinearShape shape{x.size(0), x.size(1), weight.size(0)};
  const Dtype dtype = dtype_of(x, "x");
  check_matrix(weight, "weight", shape.out_features, shape.in_features, x);
  check_words(words, "words", shape.out_features, shape.in_features, x);
  const void* bias_or_null = bias_data(bias, x, shape.out_features);
  const Launcher launcher(x);
  Tensor y = empty(x, {shape.batch, shape.out_features}, x.scalar_type());
  launcher.check(cuda::masked_linear(x.const_data_ptr(), weight.const_data_ptr(), words_data(words),
                                     bias_or_null, y.mutable_data_ptr(), shape, dtype, launcher.stream()),
                 "masked_linear");
  return y;
}

Tensor masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& words) {
  check_layout(grad, "grad", 2, grad);
  check_layout(weight, "weight", 2, grad);
  const cuda::LinearShape shape{grad.size(0), weight.size(1), weight.size(0)};
  const Dtype dtype = dtype_of(grad, "grad");
  check_matrix(grad, "grad", shape.batch, shape.out_features, grad);
  check_matrix(weight, "weight", shape.out_features, shape.in_features, grad);
  check_words(words, "words", shape.out_features, shape.in_features, grad);
  const Launcher launcher(grad);
  Tensor input_grad = empty(grad, {shape.batch, shape.in_features}, grad.scalar_type());
  launcher.check(
      cuda::masked_linear_input_grad(grad.const_data_ptr(), weight.const_data_ptr(), words_data(words),
                                     input_grad.mutable_data_ptr(), shape, dtype, launcher.stream()),
      "masked_linear_input_grad");
  return input_grad;
}

Tensor masked_linear_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words) {
  check_layout(grad, "grad", 2, grad);
  check_layout(x, "x", 2, grad);
  const cuda::LinearShape shape{grad.size(0), x.size(1), grad.size(1)};
  const Dtype dtype = dtype_of(grad, "grad");
  check_matrix(x, "x", shape.batch, shape.in_features, grad);
  check_words(words, "words", shape.out_features, shape.in_features, grad);
  const Launcher launcher(grad);
  Tensor weight_grad = empty(grad, {shape.out_features, shape.in_features}, grad.scalar_type());
  launcher.check(
      cuda::masked_linear_weight_grad(grad.const_data_ptr(), x.const_data_ptr(), words_data(words),
                                      weight_grad.mutable_data_ptr(), shape, dtype, launcher.stream()),
      "masked_linear_weight_grad");
  return weight_grad;
}

}  // namespace
}  // namespace sparseprune::torch_cuda

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CUDA, m) {
  m.impl("masked_linear", TORCH_BOX(&sparseprune::torch_cuda::masked_linear));
  m.impl("masked_linear_input_grad", TORCH_BOX(&sparseprune::torch_cuda::masked_linear_input_grad));
  m.impl("masked_linear_weight_grad", TORCH_BOX(&sparseprune::torch_cuda::masked_linear_weight_grad));
}
