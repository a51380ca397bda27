#include <sparseprune/submask.h>

#include <algorithm>
#include <vector>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

Tensor spread_bits(const Tensor& words, const Tensor& kept) {
  check_layout(words, "words", 2);
  const int64_t rows = words.size(0), row_words = words.size(1);
  check_words(words, "words", rows, 32 * row_words);
  check_layout(kept, "kept", 2);
  check_words(kept, "kept", 1, 32 * kept.size(1));
  const int64_t count = count_bits(words);
  STD_TORCH_CHECK(count <= 32 * kept.size(1), "`kept` must have a bit for each of the ", count, " set bits, got ",
                  32 * kept.size(1));
  Tensor out = empty({rows, row_words}, ScalarType::Int);
  with_isa([&](auto isa) {
    sparseprune::spread_bits<decltype(isa)::value>(data<int32_t>(words), data<int32_t>(kept), rows, row_words,
                                                   mutable_data<int32_t>(out), torch_threads());
  });
  return out;
}

// The bits; int64 [2]: how many bits of `part` are within `words`, and how many are not.
std::vector<Tensor> collect_bits(const Tensor& words, const Tensor& part, int64_t count) {
  check_layout(words, "words", 2);
  const int64_t rows = words.size(0), row_words = words.size(1);
  check_words(words, "words", rows, 32 * row_words);
  check_words(part, "part", rows, 32 * row_words);
  const int64_t counted = count_bits(words);
  STD_TORCH_CHECK(count == counted, "`count` must be the ", counted, " set bits of words, got ", count);
  Tensor kept = empty({1, words_per_row(count)}, ScalarType::Int), counts = empty({2}, ScalarType::Long);
  std::fill_n(mutable_data<int32_t>(kept), kept.size(1), 0);  // of none there is no memory
  with_isa([&](auto isa) {
    const auto found = sparseprune::collect_bits<decltype(isa)::value>(
        data<int32_t>(words), data<int32_t>(part), rows, row_words, mutable_data<int32_t>(kept));
    mutable_data<int64_t>(counts)[0] = found.kept;
    mutable_data<int64_t>(counts)[1] = found.strays;
  });
  return {kept, counts};
}

// f(float or double, ISA) for a weight and its mask, once they are checked.
template <class F>
void with_weight(const Tensor& weight, const Tensor& words, F&& f) {
  check_layout(weight, "weight", 2);
  check_real(weight, "weight");
  check_words(words, "words", weight.size(0), weight.size(1));
  with_real(weight, [&](auto zero) { with_isa([&](auto isa) { f(zero, isa); }); });
}

void zero_pruned(Tensor weight, const Tensor& words) {
  with_weight(weight, words, [&](auto zero, auto isa) {
    using T = decltype(zero);
    sparseprune::zero_pruned<decltype(isa)::value>(mutable_data<T>(weight), data<int32_t>(words), weight.size(0),
                                                   weight.size(1), torch_threads());
  });
}

bool is_zero_outside(const Tensor& weight, const Tensor& words) {
  bool found = false;
  with_weight(weight, words, [&](auto zero, auto isa) {
    using T = decltype(zero);
    found = sparseprune::is_zero_outside<decltype(isa)::value>(data<T>(weight), data<int32_t>(words), weight.size(0),
                                                               weight.size(1), torch_threads());
  });
  return found;
}

Tensor collect_values(const Tensor& weight, const Tensor& words) {
  Tensor values;
  with_weight(weight, words, [&](auto zero, auto isa) {
    using T = decltype(zero);
    values = empty({count_bits(words)}, weight.scalar_type());
    sparseprune::collect_values<decltype(isa)::value>(data<T>(weight), data<int32_t>(words), weight.size(0),
                                                      weight.size(1), mutable_data<T>(values), torch_threads());
  });
  return values;
}

void spread_values(Tensor weight, const Tensor& words, const Tensor& values) {
  with_weight(weight, words, [&](auto zero, auto isa) {
    using T = decltype(zero);
    check_layout(values, "values", 1);
    check_same_type(values, "values", weight, "weight");
    check_size(values, "values", 0, count_bits(words));
    sparseprune::spread_values<decltype(isa)::value>(mutable_data<T>(weight), data<int32_t>(words), weight.size(0),
                                                     weight.size(1), data<T>(values), torch_threads());
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("spread_bits", TORCH_BOX(&spread_bits));
  m.impl("zero_pruned_", TORCH_BOX(&zero_pruned));
  m.impl("is_zero_outside", TORCH_BOX(&is_zero_outside));
  m.impl("collect_values", TORCH_BOX(&collect_values));
  m.impl("spread_values_", TORCH_BOX(&spread_values));
  m.impl("collect_bits", TORCH_BOX(&collect_bits));
}

}  // namespace sparseprune::torch_cpu
