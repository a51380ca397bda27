// Exact global selection: the k largest scores over a list of tensors, as packed masks.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

// One tensor of the list. candidates and words are packed masks of [rows, cols]; candidates may be null
// (every slot competes) and words is written.
template <class T>
struct ScoredTensor {
  const T* scores;
  const int32_t* candidates;
  int32_t* words;
  int64_t rows;
  int64_t cols;
};

struct TopkStatus {
  int64_t
      nan_tensor;  // the first tensor with a NaN in a competing slot, or -1; the words are unspecified then
  int64_t competing;  // how many slots compete
};

// Sets exactly min(k, competing) bits. Among equal scores (-0.0 equals +0.0) the lowest (tensor, flat index)
// is kept. T is float or double.
template <Isa isa, class T>
TopkStatus topk_mask(const ScoredTensor<T>* tensors, int64_t count, int64_t k, const Parallel& parallel);

}  // namespace sparseprune
