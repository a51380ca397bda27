// topk_mask on CUDA tensors.
#include "cuda_common.h"
#include "sparseprune/cuda/topk_mask.h"

namespace sparseprune::torch_cuda {
namespace {

void check_as_many(const char* name, size_t size, size_t scores, bool or_none) {
  STD_TORCH_CHECK(size == scores || (or_none && size == 0), "`", name, "` must be as many as `scores`, ",
                  scores, or_none ? ", or none, got " : ", got ", size);
}

// Null where the formula has no gradient.
const void* gradient_data(const std::vector<Tensor>& gradients, size_t i, const Tensor& scores,
                          cuda::Formula formula) {
  if (!cuda::has_gradient(formula)) return nullptr;
  STD_TORCH_CHECK(!gradients.empty(), "`gradients` must be given for formula ", static_cast<int>(formula),
                  ", got none");
  const Tensor& gradient = gradients[i];
  check_layout(gradient, "gradients", 2, scores);
  check_same_type(gradient, "gradients", scores);
  check_size(gradient, "gradients", 0, scores.size(0));
  check_size(gradient, "gradients", 1, scores.size(1));
  return gradient.const_data_ptr();
}

// The words of every tensor; int64 [2 + n]: the first tensor with a NaN or -1, the number of competing slots,
// the bits set in every tensor; float64 [1]: the last score that is kept.
std::vector<Tensor> topk_mask(const std::vector<Tensor>& scores, const std::vector<Tensor>& gradients,
                              const std::vector<Tensor>& candidates, const std::vector<int64_t>& formulas,
                              int64_t k, const std::optional<Tensor>& k_tensor, bool largest) {
  STD_TORCH_CHECK(!scores.empty(), "`scores` must hold at least one CUDA tensor, got an empty list");
  check_as_many("gradients", gradients.size(), scores.size(), true);
  check_as_many("candidates", candidates.size(), scores.size(), true);
  check_as_many("formulas", formulas.size(), scores.size(), false);
  const Tensor& first = scores.front();
  const int64_t* device_k = nullptr;
  if (k_tensor) {
    STD_TORCH_CHECK(k_tensor->numel() == 1 && k_tensor->scalar_type() == ScalarType::Long,
                    "`k_tensor` must be one int64, got another dtype or ", k_tensor->numel(), " elements");
    check_layout(*k_tensor, "k_tensor", k_tensor->dim(), first);
    device_k = static_cast<const int64_t*>(k_tensor->const_data_ptr());
  }

  std::vector<Tensor> results;
  std::vector<cuda::TopkTensor> table;
  for (size_t i = 0; i < scores.size(); ++i) {
    check_layout(scores[i], "scores", 2, first);
    STD_TORCH_CHECK(0 <= formulas[i] && formulas[i] <= static_cast<int64_t>(cuda::Formula::kAbsWTimesG),
                    "`formulas` must be 0 (w), 1 (|w|), 2 (w*g), 3 (|w*g|) or 4 (|w|*g), got ", formulas[i]);
    const auto formula = static_cast<cuda::Formula>(formulas[i]);
    const int64_t rows = scores[i].size(0), columns = scores[i].size(1);
    if (!candidates.empty()) check_words(candidates[i], "candidates", rows, columns, first);
    results.push_back(empty(first, {rows, cuda::words_per_row(columns)}, ScalarType::Int));
    table.push_back({scores[i].const_data_ptr(), gradient_data(gradients, i, scores[i], formula),
                     candidates.empty() ? nullptr : words_data(candidates[i]),
                     static_cast<uint32_t*>(results.back().mutable_data_ptr()), rows, columns,
                     dtype_of(scores[i], "scores"), formula});
  }
  const auto count = static_cast<int64_t>(table.size());
  const Launcher launcher(first);
  const Tensor status = empty(first, {2 + count}, ScalarType::Long);
  const Tensor threshold = empty(first, {1}, ScalarType::Double);
  const auto workspace_size = static_cast<int64_t>(cuda::topk_mask_workspace_size(table.data(), count));
  const Tensor workspace = empty(first, {workspace_size}, ScalarType::Byte);
  launcher.check(cuda::topk_mask(table.data(), count, {k, device_k, largest},
                                 {static_cast<int64_t*>(status.mutable_data_ptr()),
                                  static_cast<double*>(threshold.mutable_data_ptr())},
                                 workspace.mutable_data_ptr(), launcher.stream()),
                 "topk_mask");
  results.push_back(status);
  results.push_back(threshold);
  return results;
}

}  // namespace
}  // namespace sparseprune::torch_cuda

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CUDA, m) {
  m.impl("topk_mask", TORCH_BOX(&sparseprune::torch_cuda::topk_mask));
}
