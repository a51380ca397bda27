// What the registrations of the layers share: a masked weight, dense or packed, as the kernels take it.
#pragma once

#include <vector>

#include <sparseprune/weight.h>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {

// Where each row's survivors start among packed values, of which there must be as many as the mask keeps.
inline std::vector<int64_t> packed_starts(const Tensor& words, int64_t values) {
  std::vector<int64_t> start(static_cast<size_t>(words.size(0)) + 1);
  with_isa([&](auto isa) {
    sparseprune::count_mask<decltype(isa)::value>(data<int32_t>(words), words.size(0), words.size(1), start.data() + 1,
                                                  torch_threads());
  });
  for (size_t row = 1; row < start.size(); ++row) start[row] += start[row - 1];
  STD_TORCH_CHECK(start.back() == values, "`values` must have as many elements as the mask keeps, ", start.back(),
                  ", got ", values);
  return start;
}

inline void check_values(const Tensor& values) {
  check_layout(values, "values", 1);
  check_real(values, "values");
}

// A weight that is dense where `start` is empty, else packed.
template <class T>
Weight<const T> stored(const Tensor& values, const Tensor& words, const std::vector<int64_t>& start) {
  return {data<T>(values), data<int32_t>(words), start.empty() ? nullptr : start.data()};
}
template <class T>
Weight<T> mutable_stored(const Tensor& values, const Tensor& words, const std::vector<int64_t>& start) {
  return {mutable_data<T>(values), data<int32_t>(words), start.empty() ? nullptr : start.data()};
}

}  // namespace sparseprune::torch_cpu
