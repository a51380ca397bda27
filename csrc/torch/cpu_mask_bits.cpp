#include <sparseprune/mask_bits.h>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

Tensor pack_mask(const Tensor& mask) {
  check_layout(mask, "mask", 2);
  STD_TORCH_CHECK(mask.scalar_type() == ScalarType::Bool, "`mask` must be a bool tensor, got another dtype");
  const int64_t rows = mask.size(0), cols = mask.size(1);
  Tensor words = empty({rows, words_per_row(cols)}, ScalarType::Int);
  with_isa([&](auto isa) {
    sparseprune::pack_mask<decltype(isa)::value>(data<uint8_t>(mask), rows, cols,
                                                 mutable_data<int32_t>(words), torch_threads());
  });
  return words;
}

Tensor unpack_mask(const Tensor& words, int64_t cols) {
  STD_TORCH_CHECK(cols >= 0, "`cols` must be at least 0, got ", cols);
  STD_TORCH_CHECK(words.dim() == 2, "`words` must have 2 dimensions, got ", words.dim());
  const int64_t rows = words.size(0);
  check_words(words, "words", rows, cols);
  Tensor mask = empty({rows, cols}, ScalarType::Bool);
  with_isa([&](auto isa) {
    sparseprune::unpack_mask<decltype(isa)::value>(data<int32_t>(words), rows, cols,
                                                   mutable_data<uint8_t>(mask), torch_threads());
  });
  return mask;
}

Tensor count_mask(const Tensor& words) {
  STD_TORCH_CHECK(words.dim() == 2, "`words` must have 2 dimensions, got ", words.dim());
  const int64_t rows = words.size(0), row_words = words.size(1);
  check_words(words, "words", rows, 32 * row_words);
  Tensor counts = empty({rows}, ScalarType::Long);
  with_isa([&](auto isa) {
    sparseprune::count_mask<decltype(isa)::value>(data<int32_t>(words), rows, row_words,
                                                  mutable_data<int64_t>(counts), torch_threads());
  });
  return counts;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("pack_mask", TORCH_BOX(&pack_mask));
  m.impl("unpack_mask", TORCH_BOX(&unpack_mask));
  m.impl("count_mask", TORCH_BOX(&count_mask));
}

}  // namespace sparseprune::torch_cpu
