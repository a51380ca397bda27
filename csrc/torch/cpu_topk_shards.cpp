#include <sparseprune/topk_shards.h>

#include <optional>
#include <type_traits>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

template <class F>
void with_float(const Tensor& scores, F&& f) {
  switch (scores.scalar_type()) {
    case ScalarType::Half:
      return f(Float16{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    case ScalarType::Float:
      return f(float{});
    case ScalarType::Double:
      return f(double{});
    default:
      STD_TORCH_CHECK(false, "`scores` must be float16, bfloat16, float32 or float64, got another dtype");
  }
}

// Calls f(isa, T{}, shard) for the level to run, the type to compare in and the scores as they are stored.
template <class F>
void with_shard(const Tensor& scores, const std::optional<Tensor>& candidates, bool wide, bool largest,
                bool absolute, F&& f) {
  check_layout(scores, "scores", 2);
  if (candidates) check_words(*candidates, "candidates", scores.size(0), scores.size(1));
  STD_TORCH_CHECK(wide || scores.scalar_type() != ScalarType::Double,
                  "`wide` must be true where scores are float64, got false");
  with_float(scores, [&](auto stored) {
    using Stored = decltype(stored);
    const ShardScores<Stored> shard{data<Stored>(scores),
                                    candidates ? data<int32_t>(*candidates) : nullptr,
                                    scores.size(0),
                                    scores.size(1),
                                    largest,
                                    absolute};
    with_isa([&](auto isa) {
      if constexpr (!std::is_same_v<Stored, double>) {
        if (!wide) return f(isa, float{}, shard);
      }
      f(isa, double{}, shard);
    });
  });
}

// int64 [2^width + 1].
Tensor digit_histogram(const Tensor& scores, std::optional<Tensor> candidates, bool wide, bool largest,
                       bool absolute, int64_t low, int64_t shift, int64_t width) {
  STD_TORCH_CHECK(shift >= 0 && width > 0 && width <= 16 && shift + width <= (wide ? 64 : 32),
                  "`shift` and `width` must be a digit of at most 16 bits of the key, got ", shift, " and ", width);
  Tensor counts = empty({(int64_t{1} << width) + 1}, ScalarType::Long);
  with_shard(scores, candidates, wide, largest, absolute, [&](auto isa, auto zero, const auto& shard) {
    sparseprune::digit_histogram<decltype(isa)::value, decltype(zero)>(
        shard, low, static_cast<int>(shift), static_cast<int>(width), mutable_data<int64_t>(counts), torch_threads());
  });
  return counts;
}

// The words, and int64 [2].
std::vector<Tensor> threshold_mask(const Tensor& scores, std::optional<Tensor> candidates, bool wide, bool largest,
                                   bool absolute, int64_t threshold, int64_t quota) {
  check_layout(scores, "scores", 2);
  Tensor words = empty({scores.size(0), words_per_row(scores.size(1))}, ScalarType::Int);
  Tensor counts = empty({2}, ScalarType::Long);
  with_shard(scores, candidates, wide, largest, absolute, [&](auto isa, auto zero, const auto& shard) {
    sparseprune::threshold_mask<decltype(isa)::value, decltype(zero)>(
        shard, threshold, quota, mutable_data<int32_t>(words), mutable_data<int64_t>(counts), torch_threads());
  });
  return {words, counts};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("digit_histogram", TORCH_BOX(&digit_histogram));
  m.impl("threshold_mask", TORCH_BOX(&threshold_mask));
}

}  // namespace sparseprune::torch_cpu
