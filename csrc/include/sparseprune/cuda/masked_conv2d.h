// 2-D convolution with a bit-packed weight mask on a CUDA device, and its two gradients.
//
// x [batch, channels, height, width], weight [out_channels, channels / groups, kernel_h, kernel_w], words
// [out_channels, words_per_row(channels / groups * kernel_h * kernel_w)] (see mask_bits.h), bias
// [out_channels] or null, y and g [batch, out_channels, out_height, out_width]. All are contiguous (NCHW)
// device arrays of one dtype. A pruned weight is never loaded; its gradient is exactly 0. The input gradient
// gathers, so no sum needs atomics and the order of every sum is fixed. Any size may be zero. The work is
// enqueued on `stream` and nothing is waited for. The result is the launch's error.
#pragma once

#include <cstdint>

#include <cuda_runtime_api.h>

#include "sparseprune/cuda/dtype.h"

namespace sparseprune::cuda {

// Spatial extents, and the products below that bound a coordinate, must be under 2^31; array sizes need not
// be.
struct Conv2dShape {
  int64_t batch, channels, out_channels, groups;
  int height, width, kernel_h, kernel_w, out_height, out_width;
  int stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
};

cudaError_t masked_conv2d(const void* x, const void* weight, const uint32_t* words, const void* bias, void* y,
                          const Conv2dShape& shape, Dtype dtype, cudaStream_t stream);

cudaError_t masked_conv2d_input_grad(const void* grad, const void* weight, const uint32_t* words,
                                     void* input_grad, const Conv2dShape& shape, Dtype dtype,
                                     cudaStream_t stream);

cudaError_t masked_conv2d_weight_grad(const void* grad, const void* x, const uint32_t* words,
                                      void* weight_grad, const Conv2dShape& shape, Dtype dtype,
                                      cudaStream_t stream);

}  // namespace sparseprune::cuda
