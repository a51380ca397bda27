#include <sparseprune/masked_linear.h>

#include <optional>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

void check_matrix(const Tensor& tensor, const char* name, int64_t rows, int64_t cols) {
  check_layout(tensor, name, 2);
  check_real(tensor, name);
  check_size(tensor, name, 0, rows);
  check_size(tensor, name, 1, cols);
}

// Checks the weight's side and returns the sizes of the product.
LinearSize check_sizes(int64_t batch, int64_t in, int64_t out, const Tensor& words) {
  constexpr int64_t limit = int64_t{1} << 31;
  STD_TORCH_CHECK(in < limit && out < limit, "`weight` must have fewer than 2^31 rows and columns, got [",
                  out, ", ", in, "]");
  check_words(words, "words", out, in);
  return {batch, in, out};
}

Tensor masked_linear(const Tensor& x, const Tensor& weight, const Tensor& words, std::optional<Tensor> bias) {
  check_layout(weight, "weight", 2);
  check_layout(x, "x", 2);
  const LinearSize size = check_sizes(x.size(0), weight.size(1), weight.size(0), words);
  check_matrix(x, "x", size.batch, size.in);
  check_matrix(weight, "weight", size.out, size.in);
  check_same_type(weight, "weight", x, "x");
  if (bias) {
    check_layout(*bias, "bias", 1);
    check_size(*bias, "bias", 0, size.out);
    check_same_type(*bias, "bias", x, "x");
  }
  Tensor y = empty({size.batch, size.out}, x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_linear<decltype(isa)::value>(data<T>(x), data<T>(weight), data<int32_t>(words),
                                                       bias ? data<T>(*bias) : static_cast<const T*>(nullptr),
                                                       mutable_data<T>(y), size, torch_threads());
    });
  });
  return y;
}

Tensor masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& words) {
  check_layout(weight, "weight", 2);
  check_layout(grad, "grad", 2);
  const LinearSize size = check_sizes(grad.size(0), weight.size(1), weight.size(0), words);
  check_matrix(grad, "grad", size.batch, size.out);
  check_matrix(weight, "weight", size.out, size.in);
  check_same_type(weight, "weight", grad, "grad");
  Tensor x_grad = empty({size.batch, size.in}, grad.scalar_type());
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_linear_input_grad<decltype(isa)::value>(
          data<T>(grad), data<T>(weight), data<int32_t>(words), mutable_data<T>(x_grad), size,
          torch_threads());
    });
  });
  return x_grad;
}

Tensor masked_linear_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words) {
  check_layout(grad, "grad", 2);
  check_layout(x, "x", 2);
  const LinearSize size = check_sizes(x.size(0), x.size(1), grad.size(1), words);
  check_matrix(grad, "grad", size.batch, size.out);
  check_matrix(x, "x", size.batch, size.in);
  check_same_type(x, "x", grad, "grad");
  Tensor weight_grad = empty({size.out, size.in}, grad.scalar_type());
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_linear_weight_grad<decltype(isa)::value>(
          data<T>(grad), data<T>(x), data<int32_t>(words), mutable_data<T>(weight_grad), size,
          torch_threads());
    });
  });
  return weight_grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&masked_linear));
  m.impl("masked_linear_input_grad", TORCH_BOX(&masked_linear_input_grad));
  m.impl("masked_linear_weight_grad", TORCH_BOX(&masked_linear_weight_grad));
}

}  // namespace sparseprune::torch_cpu
