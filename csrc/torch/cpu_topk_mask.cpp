#include <sparseprune/topk_mask.h>

#include <vector>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

template <class T>
TopkStatus select(const std::vector<Tensor>& scores, const std::vector<Tensor>& candidates,
                  const std::vector<Tensor>& words, int64_t k) {
  std::vector<ScoredTensor<T>> tensors;
  for (size_t i = 0; i < scores.size(); ++i) {
    const int32_t* slots = candidates.empty() ? nullptr : data<int32_t>(candidates[i]);
    tensors.push_back(
        {data<T>(scores[i]), slots, mutable_data<int32_t>(words[i]), scores[i].size(0), scores[i].size(1)});
  }
  TopkStatus status{-1, 0};
  with_isa([&](auto isa) {
    status = sparseprune::topk_mask<decltype(isa)::value>(
        tensors.data(), static_cast<int64_t>(tensors.size()), k, torch_threads());
  });
  return status;
}

// The words of every tensor, then int64 [2]: the index of the first tensor with a NaN in a competing slot or
// -1, and the number of competing slots.
std::vector<Tensor> topk_mask(const std::vector<Tensor>& scores, const std::vector<Tensor>& candidates,
                              int64_t k) {
  STD_TORCH_CHECK(k >= 0, "`k` must be at least 0, got ", k);
  STD_TORCH_CHECK(candidates.empty() || candidates.size() == scores.size(),
                  "`candidates` must be empty or as long as `scores` (", scores.size(), "), got ",
                  candidates.size());
  std::vector<Tensor> results;
  for (size_t i = 0; i < scores.size(); ++i) {
    check_layout(scores[i], "scores", 2);
    check_real(scores[i], "scores");
    check_same_type(scores[i], "scores", scores[0], "scores[0]");
    const int64_t rows = scores[i].size(0), cols = scores[i].size(1);
    if (!candidates.empty()) check_words(candidates[i], "candidates", rows, cols);
    results.push_back(empty({rows, words_per_row(cols)}, ScalarType::Int));
  }
  TopkStatus status{-1, 0};
  if (!scores.empty()) {
    with_real(scores[0], [&](auto zero) { status = select<decltype(zero)>(scores, candidates, results, k); });
  }
  Tensor counts = empty({2}, ScalarType::Long);
  mutable_data<int64_t>(counts)[0] = status.nan_tensor;
  mutable_data<int64_t>(counts)[1] = status.competing;
  results.push_back(counts);
  return results;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) { m.impl("topk_mask", TORCH_BOX(&topk_mask)); }

}  // namespace sparseprune::torch_cpu
