#include <sparseprune/position_maps.h>

#include <utility>
#include <vector>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

void check_int(const Tensor& tensor, const char* name, int64_t cols) {
  check_layout(tensor, name, 2);
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Int, "`", name, "` must be an int32 tensor, got another dtype");
  if (cols > 0) check_size(tensor, name, 1, cols);
}

Tensor map_positions(const Tensor& x, const Tensor& starts, const Tensor& sources, const Tensor& factors) {
  check_layout(x, "x", 2);
  check_real(x, "x");
  for (const auto& [tensor, name] : {std::pair(&starts, "starts"), std::pair(&sources, "sources")}) {
    check_layout(*tensor, name, 1);
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Int, "`", name, "` must be an int32 tensor, got another dtype");
  }
  check_layout(factors, "factors", 1);
  check_size(factors, "factors", 0, sources.size(0));
  check_same_type(factors, "factors", x, "x");
  const int64_t count = sources.size(0), width = starts.size(0) - 1;
  const int32_t *const start = data<int32_t>(starts), *const source = data<int32_t>(sources);
  bool ascend = width >= 0 && start[0] == 0 && start[width] == count;
  for (int64_t j = 0; ascend && j < width; ++j) ascend = start[j] <= start[j + 1];
  STD_TORCH_CHECK(ascend, "`starts` must ascend from 0 to the ", count, " sources");
  for (int64_t e = 0; e < count; ++e) {
    STD_TORCH_CHECK(source[e] >= 0 && source[e] < x.size(1), "`sources` must hold positions below ", x.size(1), ", got ",
                    source[e]);
  }
  Tensor y = empty({x.size(0), width}, x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::map_positions<decltype(isa)::value>(data<T>(x), start, source, data<T>(factors), x.size(0), x.size(1),
                                                       width, mutable_data<T>(y), torch_threads());
    });
  });
  return y;
}

std::vector<Tensor> max_positions(const Tensor& x, const Tensor& windows, int64_t width) {
  check_layout(x, "x", 2);
  check_real(x, "x");
  check_int(windows, "windows", 0);
  const int64_t count = windows.size(0), taps = windows.size(1);
  STD_TORCH_CHECK(width >= count, "`width` must be at least the ", count, " windows, got ", width);
  for (int64_t i = 0; i < count * taps; ++i) {
    STD_TORCH_CHECK(data<int32_t>(windows)[i] < x.size(1), "`windows` must hold positions below ", x.size(1));
  }
  Tensor y = empty({x.size(0), width}, x.scalar_type()), winners = empty({x.size(0), width}, ScalarType::Int);
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::max_positions<decltype(isa)::value>(data<T>(x), data<int32_t>(windows), count, taps, x.size(0),
                                                       x.size(1), width, mutable_data<T>(y),
                                                       mutable_data<int32_t>(winners), torch_threads());
    });
  });
  return {y, winners};
}

Tensor max_positions_grad(const Tensor& grad, const Tensor& winners, int64_t width) {
  check_layout(grad, "grad", 2);
  check_real(grad, "grad");
  check_int(winners, "winners", grad.size(1));
  check_size(winners, "winners", 0, grad.size(0));
  for (int64_t i = 0; i < grad.size(0) * grad.size(1); ++i) {
    STD_TORCH_CHECK(data<int32_t>(winners)[i] < width, "`winners` must hold positions below ", width);
  }
  Tensor x_grad = empty({grad.size(0), width}, grad.scalar_type());
  with_real(grad, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::max_positions_grad<decltype(isa)::value>(data<T>(grad), data<int32_t>(winners), grad.size(0), width,
                                                            grad.size(1), mutable_data<T>(x_grad), torch_threads());
    });
  });
  return x_grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("map_positions", TORCH_BOX(&map_positions));
  m.impl("max_positions", TORCH_BOX(&max_positions));
  m.impl("max_positions_grad", TORCH_BOX(&max_positions_grad));
}

}  // namespace sparseprune::torch_cpu
