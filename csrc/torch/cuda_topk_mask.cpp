// topk_mask on CUDA tensors.
#include "cuda_common.h"

#include "sparseprune/cuda/topk_mask.h"

namespace sparseprune::torch_cuda {
namespace {

std::vector<Tensor> topk_mask(const std::vector<Tensor>& scores, const std::vector<Tensor>& candidates,
                              int64_t k) {
  STD_TORCH_CHECK(!scores.empty(), "`scores` must hold at least one CUDA tensor, got an empty list");
  STD_TORCH_CHECK(candidates.empty() || candidates.size() == scores.size(),
                  "`candidates` must be as many as `scores`, ", scores.size(), ", or none, got ",
                  candidates.size());
  STD_TORCH_CHECK(k >= 0, "`k` must be at least 0, got ", k);
  const Tensor& first = scores.front();
  const Dtype dtype = dtype_of(first, "scores");
  STD_TORCH_CHECK(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64,
                  "`scores` must be float32 or float64, got a half type");

  std::vector<Tensor> results;
  std::vector<cuda::TopkTensor> table;
  for (size_t i = 0; i < scores.size(); ++i) {
    check_layout(scores[i], "scores", 2, first);
    check_same_type(scores[i], "scores", first);
    const int64_t rows = scores[i].size(0), columns = scores[i].size(1);
    if (!candidates.empty()) check_words(candidates[i], "candidates", rows, columns, first);
    results.push_back(empty(first, {rows, cuda::words_per_row(columns)}, ScalarType::Int));
    table.push_back({scores[i].const_data_ptr(), candidates.empty() ? nullptr : words_data(candidates[i]),
                     static_cast<uint32_t*>(results.back().mutable_data_ptr()), rows, columns});
  }
  const auto count = static_cast<int64_t>(table.size());
  const Launcher launcher(first);
  results.push_back(empty(first, {2}, ScalarType::Long));
  const auto workspace_size = static_cast<int64_t>(cuda::topk_mask_workspace_size(table.data(), count));
  const Tensor workspace = empty(first, {workspace_size}, ScalarType::Byte);
  launcher.check(
      cuda::topk_mask(table.data(), count, dtype, k, static_cast<int64_t*>(results.back().mutable_data_ptr()),
                      workspace.mutable_data_ptr(), launcher.stream()),
      "topk_mask");
  return results;
}

}  // namespace
}  // namespace sparseprune::torch_cuda

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CUDA, m) {
  m.impl("topk_mask", TORCH_BOX(&sparseprune::torch_cuda::topk_mask));
}
