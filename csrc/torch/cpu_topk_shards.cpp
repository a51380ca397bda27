#include <sparseprune/topk_shards.h>

#include <optional>
#include <vector>

#include "cpu_scores.h"

namespace sparseprune::torch_cpu {
namespace {

ScoredTensor shard_of(const Tensor& scores, const std::optional<Tensor>& candidates, bool wide, bool abs) {
  ScoredTensor shard = scored(scores, nullptr, static_cast<int64_t>(abs ? Formula::abs_w : Formula::w));
  STD_TORCH_CHECK(wide || shard.type != ScoreType::float64, "`wide` must be true where scores are float64, got false");
  if (candidates.has_value()) {
    check_words(*candidates, "candidates", shard.rows, shard.cols);
    shard.candidates = data<int32_t>(*candidates);
  }
  return shard;
}

// int64 [2^width + 1].
Tensor digit_histogram(const Tensor& scores, std::optional<Tensor> candidates, bool wide, bool largest, bool abs,
                       int64_t low, int64_t shift, int64_t width) {
  STD_TORCH_CHECK(shift >= 0 && width > 0 && width <= 16 && shift + width <= (wide ? 64 : 32),
                  "`shift` and `width` must be a digit of at most 16 bits of the key, got ", shift, " and ", width);
  const ScoredTensor shard = shard_of(scores, candidates, wide, abs);
  Tensor counts = empty({(int64_t{1} << width) + 1}, ScalarType::Long);
  with_isa([&](auto isa) {
    const auto count = wide ? &sparseprune::digit_histogram<decltype(isa)::value, double>
                            : &sparseprune::digit_histogram<decltype(isa)::value, float>;
    count(shard, largest, low, static_cast<int>(shift), static_cast<int>(width), mutable_data<int64_t>(counts),
          torch_threads());
  });
  return counts;
}

// The words, and int64 [2].
std::vector<Tensor> threshold_mask(const Tensor& scores, std::optional<Tensor> candidates, bool wide, bool largest,
                                   bool abs, int64_t threshold, int64_t quota) {
  ScoredTensor shard = shard_of(scores, candidates, wide, abs);
  Tensor words = empty({shard.rows, words_per_row(shard.cols)}, ScalarType::Int);
  Tensor counts = empty({2}, ScalarType::Long);
  shard.words = mutable_data<int32_t>(words);
  with_isa([&](auto isa) {
    const auto write = wide ? &sparseprune::threshold_mask<decltype(isa)::value, double>
                            : &sparseprune::threshold_mask<decltype(isa)::value, float>;
    write(shard, largest, threshold, quota, mutable_data<int64_t>(counts), torch_threads());
  });
  return {words, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("digit_histogram", TORCH_BOX(&digit_histogram));
  m.impl("threshold_mask", TORCH_BOX(&threshold_mask));
}

}  // namespace sparseprune::torch_cpu
