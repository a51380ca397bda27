// packed_linear and its gradients on CUDA tensors.
#include "cuda_common.h"

#include "sparseprune/cuda/packed_linear.h"

namespace sparseprune::torch_cuda {
namespace {

// That there are as many values as bits is not checked: nothing waits for the device.

Tensor workspace_of(const Tensor& like, size_t bytes) {
  return empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

Tensor packed_linear(const Tensor& x, const Tensor& values, const Tensor& words, const std::optional<Tensor>& bias) {
  check_layout(x, "x", 2, x);
  check_layout(values, "values", 1, x);
  check_same_type(values, "values", x);
  check_layout(words, "words", 2, x);
  const cuda::LinearShape shape{x.size(0), x.size(1), words.size(0)};
  const Dtype dtype = dtype_of(x, "x");
  check_words(words, "words", shape.out_features, shape.in_features, x);
  const void* bias_or_null = bias_data(bias, x, shape.out_features);
  const Launcher launcher(x);
  Tensor y = empty(x, {shape.batch, shape.out_features}, x.scalar_type());
  Tensor workspace = workspace_of(x, cuda::packed_linear_workspace_size(shape));
  launcher.check(
      cuda::packed_linear(x.const_data_ptr(), values.const_data_ptr(), words_data(words), bias_or_null,
                          y.mutable_data_ptr(), shape, values.size(0), dtype, workspace.mutable_data_ptr(),
                          launcher.stream()),
      "packed_linear");
  return y;
}

Tensor packed_linear_input_grad(const Tensor& grad, const Tensor& values, const Tensor& words, int64_t columns) {
  check_layout(grad, "grad", 2, grad);
  check_layout(values, "values", 1, grad);
  check_same_type(values, "values", grad);
  const cuda::LinearShape shape{grad.size(0), columns, grad.size(1)};
  const Dtype dtype = dtype_of(grad, "grad");
  check_words(words, "words", shape.out_features, shape.in_features, grad);
  const Launcher launcher(grad);
  Tensor input_grad = empty(grad, {shape.batch, shape.in_features}, grad.scalar_type());
  Tensor workspace = workspace_of(grad, cuda::packed_linear_input_grad_workspace_size(shape, dtype));
  launcher.check(
      cuda::packed_linear_input_grad(grad.const_data_ptr(), values.const_data_ptr(), words_data(words),
                                     input_grad.mutable_data_ptr(), shape, values.size(0), dtype,
                                     workspace.mutable_data_ptr(), launcher.stream()),
      "packed_linear_input_grad");
  return input_grad;
}

Tensor packed_linear_values_grad(const Tensor& grad, const Tensor& x, const Tensor& words, int64_t kept) {
  check_layout(grad, "grad", 2, grad);
  check_layout(x, "x", 2, grad);
  const cuda::LinearShape shape{grad.size(0), x.size(1), grad.size(1)};
  const Dtype dtype = dtype_of(grad, "grad");
  check_matrix(x, "x", shape.batch, shape.in_features, grad);
  check_words(words, "words", shape.out_features, shape.in_features, grad);
  STD_TORCH_CHECK(kept >= 0, "`kept` must be at least 0, got ", kept);
  const Launcher launcher(grad);
  Tensor values_grad = empty(grad, {kept}, grad.scalar_type());
  Tensor workspace = workspace_of(grad, cuda::packed_linear_values_grad_workspace_size(shape));
  launcher.check(
      cuda::packed_linear_values_grad(grad.const_data_ptr(), x.const_data_ptr(), words_data(words),
                                      values_grad.mutable_data_ptr(), shape, kept, dtype,
                                      workspace.mutable_data_ptr(), launcher.stream()),
      "packed_linear_values_grad");
  return values_grad;
}

}  // namespace
}  // namespace sparseprune::torch_cuda

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CUDA, m) {
  m.impl("packed_linear", TORCH_BOX(&sparseprune::torch_cuda::packed_linear));
  m.impl("packed_linear_input_grad", TORCH_BOX(&sparseprune::torch_cuda::packed_linear_input_grad));
  m.impl("packed_linear_values_grad", TORCH_BOX(&sparseprune::torch_cuda::packed_linear_values_grad));
}
