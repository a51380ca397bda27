#include <sparseprune/dense_scores.h>

#include <vector>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

// Writes the scores into `scores`; the gradient of x, empty unless it is wanted, and the largest gradient of a weight.
std::vector<Tensor> dense_scores(const Tensor& weight, const Tensor& grad, const Tensor& x, Tensor scores,
                                 bool input_grad) {
  check_layout(weight, "weight", 2);
  check_layout(grad, "grad", 2);
  check_layout(x, "x", 2);
  check_layout(scores, "scores", 2);
  check_real(weight, "weight");
  const int64_t height = weight.size(0), cols = weight.size(1), width = x.size(1);
  check_same_type(grad, "grad", weight, "weight");
  check_same_type(x, "x", weight, "weight");
  check_same_type(scores, "scores", weight, "weight");
  check_size(grad, "grad", 0, height);
  check_size(grad, "grad", 1, width);
  check_size(x, "x", 0, cols);
  check_size(scores, "scores", 0, height);
  check_size(scores, "scores", 1, cols);
  STD_TORCH_CHECK(width == 1 || width % 4 == 0, "`x` must have 1 or a multiple of 4 columns, got ", width);
  Tensor x_grad = empty({input_grad ? cols : 0, width}, x.scalar_type()), peak = empty({1}, x.scalar_type());
  with_real(weight, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      *mutable_data<T>(peak) = sparseprune::dense_scores<decltype(isa)::value>(
          data<T>(weight), data<T>(grad), data<T>(x), height, cols, width,
          input_grad ? mutable_data<T>(x_grad) : static_cast<T*>(nullptr), mutable_data<T>(scores), torch_threads());
    });
  });
  return {x_grad, peak};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) { m.impl("dense_scores", TORCH_BOX(&dense_scores)); }

}  // namespace sparseprune::torch_cpu
