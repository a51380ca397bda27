// Exact global selection: the k largest (or smallest) scores over a list of tensors, as packed masks. A score is a
// weight, or a formula of a weight and its gradient that is evaluated where it is read and never stored.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

enum class ScoreType { float16, bfloat16, float32, float64 };

enum class Formula { w, abs_w, w_g, abs_w_g, abs_w_times_g };  // w, |w|, w*g, |w*g|, |w|*g

constexpr int kScoreDims = 8;

// Elements in logical order: the last dimension runs fastest. dims is 0 where they lie so in memory.
struct Elements {
  const void* data;
  int dims;
  int64_t sizes[kScoreDims];
  int64_t strides[kScoreDims];
};

// One tensor of the list, [rows, cols]. gradients is looked at where the formula has one and is of the same type;
// candidates and words are packed masks; candidates may be null (every slot competes) and words is written.
struct ScoredTensor {
  Elements weights;
  Elements gradients;
  ScoreType type;
  Formula formula;
  const int32_t* candidates;
  int32_t* words;
  int64_t rows;
  int64_t cols;
};

struct TopkStatus {
  int64_t nan_tensor;  // the first tensor with a NaN in a competing slot, or -1; the rest is unspecified then
  int64_t competing;   // how many slots compete
  double threshold;    // the last score that is kept, NaN where none is
};

// Sets exactly min(k, competing) bits, and kept[i] to how many of them are tensor i's. Among equal scores (-0.0 equals
// +0.0) the lowest (tensor, flat index) is kept, also where the smallest are wanted. Scores are computed and compared
// as T, float or double; a tensor of float64 needs double. Scores of slots that do not compete are not looked at.
// Besides the masks it takes less than 4 MB, however many scores there are.
template <Isa isa, class T>
TopkStatus topk_mask(const ScoredTensor* tensors, int64_t count, int64_t k, bool largest, int64_t* kept,
                     const Parallel& parallel);

}  // namespace sparseprune
