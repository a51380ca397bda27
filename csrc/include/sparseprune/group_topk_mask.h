// Exact selection within groups: the k largest (or smallest) of every group of consecutive scores of a row.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>
#include <sparseprune/topk_mask.h>

namespace sparseprune {

// Sets the bits of the k best of every `group` consecutive scores of a row, 0 <= k <= group, where group divides
// tensor.cols; all slots compete. Among equal scores (-0.0 equals +0.0) those with the lowest index are kept, also where
// the smallest are wanted. Scores are computed and compared as T, float or double; a tensor of float64 needs double.
// Returns the first row with a NaN, or -1; the words are unspecified where there is one.
template <Isa isa, class T>
int64_t group_topk_mask(const ScoredTensor& tensor, int64_t k, int64_t group, bool largest, const Parallel& parallel);

}  // namespace sparseprune
