// Tensors as the selection's kernels take them.
#pragma once

#include <sparseprune/topk_mask.h>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {

inline ScoreType score_type(const Tensor& tensor) {
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
inline Elements elements_of(const Tensor& tensor) {
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

inline void check_scores(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cpu(), "`", name, "` must be on the CPU for the CPU kernel, got another device");
  STD_TORCH_CHECK(tensor.dim() >= 2, "`", name, "` must have at least 2 dimensions, got ", tensor.dim());
}

inline ScoredTensor scored(const Tensor& weights, const Tensor* gradients, int64_t formula) {
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

}  // namespace sparseprune::torch_cpu
