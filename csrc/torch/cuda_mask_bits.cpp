// pack_mask, unpack_mask and count_mask on CUDA tensors.
#include "cuda_common.h"

namespace sparseprune::torch_cuda {
namespace {

Tensor pack_mask(const Tensor& mask) {
  check_layout(mask, "mask", 2, mask);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "`mask` must be a bool tensor, got another dtype");
  const int64_t rows = mask.size(0), columns = mask.size(1);
  const Launcher launcher(mask);
  Tensor words = empty(mask, {rows, cuda::words_per_row(columns)}, ScalarType::Int);
  launcher.check(
      cuda::pack_mask(static_cast<const uint8_t*>(mask.const_data_ptr()),
                      static_cast<uint32_t*>(words.mutable_data_ptr()), rows, columns, launcher.stream()),
      "pack_mask");
  return words;
}

Tensor unpack_mask(const Tensor& words, int64_t columns) {
  STD_TORCH_CHECK(columns >= 0, "`cols` must be at least 0, got ", columns);
  check_layout(words, "words", 2, words);
  const int64_t rows = words.size(0);
  check_words(words, "words", rows, columns, words);
  const Launcher launcher(words);
  Tensor mask = empty(words, {rows, columns}, ScalarType::Bool);
  launcher.check(cuda::unpack_mask(words_data(words), static_cast<uint8_t*>(mask.mutable_data_ptr()), rows,
                                   columns, launcher.stream()),
                 "unpack_mask");
  return mask;
}

Tensor count_mask(const Tensor& words) {
  check_layout(words, "words", 2, words);
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int,
                  "`words` must be an int32 tensor, got another dtype");
  const Launcher launcher(words);
  Tensor counts = empty(words, {words.size(0)}, ScalarType::Long);
  launcher.check(cuda::count_mask(words_data(words), static_cast<int64_t*>(counts.mutable_data_ptr()),
                                  words.size(0), words.size(1), launcher.stream()),
                 "count_mask");
  return counts;
}

}  // namespace
}  // namespace sparseprune::torch_cuda

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CUDA, m) {
  m.impl("pack_mask", TORCH_BOX(&sparseprune::torch_cuda::pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&sparseprune::torch_cuda::unpack_mask));
  m.impl("count_mask", TORCH_BOX(&sparseprune::torch_cuda::count_mask));
}
