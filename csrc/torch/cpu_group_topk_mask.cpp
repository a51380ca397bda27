#include <sparseprune/group_topk_mask.h>

#include <optional>
#include <vector>

#include "cpu_scores.h"

namespace sparseprune::torch_cpu {
namespace {

// The words; int64 [1]: the first row with a NaN, or -1.
std::vector<Tensor> group_topk_mask(const Tensor& scores, std::optional<Tensor> gradients, int64_t formula, int64_t k,
                                    int64_t group, bool largest) {
  ScoredTensor tensor = scored(scores, gradients ? &*gradients : nullptr, formula);
  STD_TORCH_CHECK(group > 0 && tensor.cols % group == 0, "`group` must divide the ", tensor.cols,
                  " scores of a row, got ", group);
  STD_TORCH_CHECK(k >= 0 && k <= group, "`k` must be between 0 and the ", group, " scores of a group, got ", k);
  Tensor words = empty({tensor.rows, words_per_row(tensor.cols)}, ScalarType::Int);
  Tensor nan_row = empty({1}, ScalarType::Long);
  tensor.words = mutable_data<int32_t>(words);
  with_isa([&](auto isa) {
    const auto select = tensor.type == ScoreType::float64 ? &sparseprune::group_topk_mask<decltype(isa)::value, double>
                                                          : &sparseprune::group_topk_mask<decltype(isa)::value, float>;
    *mutable_data<int64_t>(nan_row) = select(tensor, k, group, largest, torch_threads());
  });
  return {words, nan_row};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) { m.impl("group_topk_mask", TORCH_BOX(&group_topk_mask)); }

}  // namespace sparseprune::torch_cpu
