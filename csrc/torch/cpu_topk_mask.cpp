#include <sparseprune/topk_mask.h>

#include <optional>
#include <vector>

#include "cpu_scores.h"

namespace sparseprune::torch_cpu {
namespace {

// The words of every tensor; int64 [2 + n]: the index of the first tensor with a NaN in a competing slot or -1, the
// number of competing slots, the number kept in each tensor; float64 [1]: the last score that is kept.
std::vector<Tensor> topk_mask(const std::vector<Tensor>& scores, const std::vector<Tensor>& gradients,
                              const std::vector<Tensor>& candidates, const std::vector<int64_t>& formulas, int64_t k,
                              std::optional<Tensor> k_tensor, bool largest) {
  const size_t count = scores.size();
  STD_TORCH_CHECK(gradients.empty() || gradients.size() == count, "`gradients` must be empty or as long as `scores` (",
                  count, "), got ", gradients.size());
  STD_TORCH_CHECK(candidates.empty() || candidates.size() == count,
                  "`candidates` must be empty or as long as `scores` (", count, "), got ", candidates.size());
  STD_TORCH_CHECK(formulas.size() == count, "`formulas` must be as long as `scores` (", count, "), got ",
                  formulas.size());
  if (k_tensor.has_value()) {
    STD_TORCH_CHECK(k_tensor->is_cpu() && k_tensor->scalar_type() == ScalarType::Long && k_tensor->numel() == 1,
                    "`k_tensor` must be one int64 on the CPU, got another tensor");
    k = *data<int64_t>(*k_tensor);
  }
  bool wide = false;
  std::vector<ScoredTensor> tensors;
  std::vector<Tensor> results;
  for (size_t i = 0; i < count; ++i) {
    ScoredTensor tensor = scored(scores[i], gradients.empty() ? nullptr : &gradients[i], formulas[i]);
    wide |= tensor.type == ScoreType::float64;
    if (!candidates.empty()) {
      check_words(candidates[i], "candidates", tensor.rows, tensor.cols);
      tensor.candidates = data<int32_t>(candidates[i]);
    }
    results.push_back(empty({tensor.rows, words_per_row(tensor.cols)}, ScalarType::Int));
    tensor.words = mutable_data<int32_t>(results.back());
    tensors.push_back(tensor);
  }
  Tensor status = empty({2 + static_cast<int64_t>(count)}, ScalarType::Long);
  int64_t* counts = mutable_data<int64_t>(status);
  TopkStatus found{};
  with_isa([&](auto isa) {
    const auto select = wide ? &sparseprune::topk_mask<decltype(isa)::value, double>
                             : &sparseprune::topk_mask<decltype(isa)::value, float>;
    found = select(tensors.data(), static_cast<int64_t>(count), k, largest, counts + 2, torch_threads());
  });
  counts[0] = found.nan_tensor;
  counts[1] = found.competing;
  Tensor threshold = empty({1}, ScalarType::Double);
  *mutable_data<double>(threshold) = found.threshold;
  results.push_back(status);
  results.push_back(threshold);
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace sparseprune::torch_cpu
