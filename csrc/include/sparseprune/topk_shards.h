// What one process does alone in a selection over many: count digits of its keys, then write its mask. A key is a
// signed integer that orders as the scores do, as wide as the type they are compared in; both zeros have key 0.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>
#include <sparseprune/topk_mask.h>

namespace sparseprune {

// counts[d], d < 2^width, width <= 16: the competing keys in [low, low + 2^(shift + width)) whose digit
// [shift, shift + width) is the d-th from low's. counts[2^width]: the competing NaNs, which have no digit.
// T is float or double, as for topk_mask; where the smallest come first keys are negated.
template <Isa isa, class T>
void digit_histogram(const ScoredTensor& shard, bool largest, int64_t low, int shift, int width, int64_t* counts,
                     const Parallel& parallel);

// Writes shard.words: the competing keys above threshold and the first `quota` equal to it, in flat order.
// counts[0]: the keys above; counts[1]: those equal, kept or not.
template <Isa isa, class T>
void threshold_mask(const ScoredTensor& shard, bool largest, int64_t threshold, int64_t quota, int64_t* counts,
                    const Parallel& parallel);

}  // namespace sparseprune
