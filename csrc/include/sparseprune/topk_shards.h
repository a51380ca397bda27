// What one process does alone in a selection over many: count digits of its keys, then write its mask. A key is a
// signed integer that orders as the scores do; both zeros have key 0.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

// As they are stored.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The scores of one tensor, [rows, cols] of Float16, BFloat16, float or double. candidates is a packed mask and may be
// null (every slot competes). Keys are those of |score| where absolute, and negated where the smallest come first.
template <class Stored>
struct ShardScores {
  const Stored* scores;
  const int32_t* candidates;
  int64_t rows;
  int64_t cols;
  bool largest;
  bool absolute;
};

// counts[d], d < 2^width, width <= 16: the competing keys in [low, low + 2^(shift + width)) whose digit
// [shift, shift + width) is the d-th from low's. counts[2^width]: the competing NaNs, which have no digit.
// T is float or double, the type whose bits become keys; low has no bits set below shift + width.
template <Isa isa, class T, class Stored>
void digit_histogram(const ShardScores<Stored>& shard, int64_t low, int shift, int width, int64_t* counts,
                     const Parallel& parallel);

// Writes the packed mask of the competing keys above threshold and of the first `quota` equal to it, in flat order.
// counts[0]: the keys above; counts[1]: those equal, kept or not.
template <Isa isa, class T, class Stored>
void threshold_mask(const ShardScores<Stored>& shard, int64_t threshold, int64_t quota, int32_t* words,
                    int64_t* counts, const Parallel& parallel);

}  // namespace sparseprune
