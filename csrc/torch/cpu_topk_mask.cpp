#include <sparseprune/topk_mask.h>

#include <optional>
#include <vector>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

ScoreType score_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return ScoreType::float16;
    case ScalarType::BFloat16:
      return ScoreType::bfloat16;
    case ScalarType::Float:
      return ScoreType::float32;
    case ScalarType::Double:
      return ScoreType::float64;
    default:
      STD_TORCH_CHECK(false, "`scores` must be float16, bfloat16, float32 or float64, got another dtype");
  }
}

// Dimensions that are one run in memory become one.
Elements elements_of(const Tensor& tensor) {
  Elements elements{tensor.const_data_ptr(), 0, {}, {}};
  if (tensor.is_contiguous()) return elements;
  int dims = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    const int64_t size = tensor.size(d), stride = tensor.stride(d);
    if (size == 1) continue;
    if (dims > 0 && elements.strides[dims - 1] == stride * size) {
      elements.sizes[dims - 1] *= size;
      elements.strides[dims - 1] = stride;
      continue;
    }
    STD_TORCH_CHECK(dims < kScoreDims, "`scores` must have at most ", kScoreDims, " dimensions in memory, got more");
    elements.sizes[dims] = size;
    elements.strides[dims++] = stride;
  }
  elements.dims = dims;
  return elements;
}

void check_scores(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), "`", name, "` must be on the CPU for the CPU kernel, got another device");
  STD_TORCH_CHECK(tensor.dim() >= 2, "`", name, "` must have at least 2 dimensions, got ", tensor.dim());
}

ScoredTensor scored(const Tensor& weights, const Tensor* gradients, int64_t formula) {
  check_scores(weights, "scores");
  STD_TORCH_CHECK(formula >= 0 && formula <= static_cast<int64_t>(Formula::abs_w_times_g),
                  "`formulas` must be between 0 and 4, got ", formula);
  ScoredTensor tensor{};
  tensor.weights = elements_of(weights);
  tensor.type = score_type(weights);
  tensor.formula = static_cast<Formula>(formula);
  tensor.rows = weights.size(0);
  tensor.cols = 1;
  for (int64_t d = 1; d < weights.dim(); ++d) tensor.cols *= weights.size(d);
  if (tensor.formula < Formula::w_g) return tensor;
  STD_TORCH_CHECK(gradients != nullptr, "`gradients` must have a tensor where the formula has one, got none");
  check_scores(*gradients, "gradients");
  check_same_type(*gradients, "gradients", weights, "scores");
  STD_TORCH_CHECK(gradients->dim() == weights.dim(), "`gradients` must have the shape of `scores`, got another");
  for (int64_t d = 0; d < weights.dim(); ++d) check_size(*gradients, "gradients", d, weights.size(d));
  tensor.gradients = elements_of(*gradients);
  return tensor;
}

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
