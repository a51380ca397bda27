#include <sparseprune/masked_linear.h>

#include <optional>

#include "cpu_weight.h"

namespace sparseprune::torch_cpu {
namespace {

using Starts = std::vector<int64_t>;

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

Tensor forward(const Tensor& x, const Tensor& weight, const char* name, const Tensor& words, const Starts& start,
               const std::optional<Tensor>& bias, const LinearSize& size) {
  check_matrix(x, "x", size.batch, size.in);
  check_same_type(weight, name, x, "x");
  if (bias) {
    check_layout(*bias, "bias", 1);
    check_size(*bias, "bias", 0, size.out);
    check_same_type(*bias, "bias", x, "x");
  }
  Tensor y = empty({size.batch, size.out}, x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_linear<decltype(isa)::value>(data<T>(x), stored<T>(weight, words, start),
                                                       bias ? data<T>(*bias) : static_cast<const T*>(nullptr),
                                                       mutable_data<T>(y), size, torch_threads());
    });
  });
  return y;
}

Tensor input_grad(const Tensor& grad, const Tensor& weight, const char* name, const Tensor& words, const Starts& start,
                  const LinearSize& size) {
  check_matrix(grad, "grad", size.batch, size.out);
  check_same_type(weight, name, grad, "grad");
  Tensor x_grad = empty({size.batch, size.in}, grad.scalar_type());
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_linear_input_grad<decltype(isa)::value>(
          data<T>(grad), stored<T>(weight, words, start), mutable_data<T>(x_grad), size, torch_threads());
    });
  });
  return x_grad;
}

LinearSize check_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words) {
  check_layout(grad, "grad", 2);
  check_layout(x, "x", 2);
  const LinearSize size = check_sizes(x.size(0), x.size(1), grad.size(1), words);
  check_matrix(grad, "grad", size.batch, size.out);
  check_matrix(x, "x", size.batch, size.in);
  check_same_type(x, "x", grad, "grad");
  return size;
}

Tensor weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words, const Starts& start,
                   const LinearSize& size, Tensor result) {
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::masked_linear_weight_grad<decltype(isa)::value>(
          data<T>(grad), data<T>(x), mutable_stored<T>(result, words, start), size, torch_threads());
    });
  });
  return result;
}

Tensor masked_linear(const Tensor& x, const Tensor& weight, const Tensor& words, std::optional<Tensor> bias) {
  check_layout(weight, "weight", 2);
  check_layout(x, "x", 2);
  const LinearSize size = check_sizes(x.size(0), weight.size(1), weight.size(0), words);
  check_matrix(weight, "weight", size.out, size.in);
  return forward(x, weight, "weight", words, {}, bias, size);
}

Tensor masked_linear_input_grad(const Tensor& grad, const Tensor& weight, const Tensor& words) {
  check_layout(weight, "weight", 2);
  check_layout(grad, "grad", 2);
  const LinearSize size = check_sizes(grad.size(0), weight.size(1), weight.size(0), words);
  check_matrix(weight, "weight", size.out, size.in);
  return input_grad(grad, weight, "weight", words, {}, size);
}

Tensor masked_linear_weight_grad(const Tensor& grad, const Tensor& x, const Tensor& words) {
  const LinearSize size = check_weight_grad(grad, x, words);
  return weight_grad(grad, x, words, {}, size, empty({size.out, size.in}, grad.scalar_type()));
}

Tensor packed_linear(const Tensor& x, const Tensor& values, const Tensor& words, std::optional<Tensor> bias) {
  check_values(values);
  check_layout(x, "x", 2);
  check_layout(words, "words", 2);
  const LinearSize size = check_sizes(x.size(0), x.size(1), words.size(0), words);
  return forward(x, values, "values", words, packed_starts(words, values.size(0)), bias, size);
}

Tensor packed_linear_input_grad(const Tensor& grad, const Tensor& values, const Tensor& words, int64_t in) {
  check_values(values);
  check_layout(grad, "grad", 2);
  const LinearSize size = check_sizes(grad.size(0), in, grad.size(1), words);
  return input_grad(grad, values, "values", words, packed_starts(words, values.size(0)), size);
}

Tensor packed_linear_values_grad(const Tensor& grad, const Tensor& x, const Tensor& words, int64_t kept) {
  const LinearSize size = check_weight_grad(grad, x, words);
  return weight_grad(grad, x, words, packed_starts(words, kept), size, empty({kept}, grad.scalar_type()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("masked_linear", TORCH_BOX(&masked_linear));
  m.impl("masked_linear_input_grad", TORCH_BOX(&masked_linear_input_grad));
  m.impl("masked_linear_weight_grad", TORCH_BOX(&masked_linear_weight_grad));
  m.impl("packed_linear", TORCH_BOX(&packed_linear));
  m.impl("packed_linear_input_grad", TORCH_BOX(&packed_linear_input_grad));
  m.impl("packed_linear_values_grad", TORCH_BOX(&packed_linear_values_grad));
}

}  // namespace sparseprune::torch_cpu
