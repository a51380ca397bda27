// packed_linear on CUDA tensors.
#include "cuda_common.h"

#include "sparseprune/cuda/packed_linear.h"

namespace sparseprune::torch_cuda {
namespace {

// That there are as many values as bits is not checked: nothing waits for the device.
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
  Tensor workspace = empty(x, {static_cast<int64_t>(cuda::packed_linear_workspace_size(shape))}, ScalarType::Byte);
  launcher.check(
      cuda::packed_linear(x.const_data_ptr(), values.const_data_ptr(), words_data(words), bias_or_null,
                          y.mutable_data_ptr(), shape, dtype, workspace.mutable_data_ptr(), launcher.stream()),
      "packed_linear");
  return y;
}

}  // namespace
}  // namespace sparseprune::torch_cuda

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CUDA, m) {
  m.impl("packed_linear", TORCH_BOX(&sparseprune::torch_cuda::packed_linear));
}
