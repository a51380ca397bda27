// The backward pass of a layer of a SynFlow pass that keeps most of its weights: the gradient of its input and the scores
// of its weights from one reading of them.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

// x_grad = weight^T grad, unless it is null, and scores = weight * (grad x^T). weight, scores: [height, cols]; grad:
// [height, width]; x, x_grad: [cols, width]; width is 1 or a multiple of 4.
// Returns the largest entry of grad x^T, 0 where all are negative.
template <Isa isa, class T>
T dense_scores(const T* weight, const T* grad, const T* x, int64_t height, int64_t cols, int64_t width, T* x_grad,
               T* scores, const Parallel& parallel);

}  // namespace sparseprune
