// Linear layer with a bit-packed weight mask on a CUDA device, and its two gradients.
//
//   y = x (W.m)^T + b          dx = g (W.m)          dW = (g^T x).m, exactly 0 at pruned slots
//
// x [batch, in], weight [out, in], words [out, words_per_row(in)] (see mask_bits.h), bias [out] or null, y
// and g [batch, out]. All are contiguous device arrays of one dtype. A pruned weight is never loaded, so NaN
// or infinity there cannot reach a result. The order of every sum is fixed: same inputs, same bits. Any size
// may be zero. The work is enqueued on `stream` and nothing is waited for. The result is the launch's error.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "sparseprune/cuda/dtype.h"

namespace sparseprune::cuda {

struct LinearShape {
  int64_t batch, in_features, out_features;
};

cudaError_t masked_linear(const void* x, const void* weight, const uint32_t* words, const void* bias, void* y,
                          LinearShape shape, Dtype dtype, cudaStream_t stream);

cudaError_t masked_linear_input_grad(const void* grad, const void* weight, const uint32_t* words,
                                     void* input_grad, LinearShape shape, Dtype dtype, cudaStream_t stream);

cudaError_t masked_linear_weight_grad(const void* grad, const void* x, const uint32_t* words,
                                      void* weight_grad, LinearShape shape, Dtype dtype, cudaStream_t stream);

}  // namespace sparseprune::cuda
