// conv2d with the masked weight W . m and its gradients. Pruned slots of W are never read into arithmetic.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>
#include <sparseprune/weight.h>

namespace sparseprune {

// [0] is the vertical, [1] the horizontal direction. in_channels / groups * kernel[0] * kernel[1] and out_channels are
// below 2^31, and the rows that the dilated kernel covers have fewer than 2^30 padded pixels; output =
// floor((input + 2 padding - dilation (kernel - 1) - 1) / stride) + 1, at least 1.
struct ConvSize {
  int64_t batch;
  int64_t in_channels;
  int64_t input[2];
  int64_t out_channels;
  int64_t output[2];
  int64_t kernel[2];
  int64_t stride[2];
  int64_t padding[2];
  int64_t dilation[2];
  int64_t groups;
};

// x: [batch, in_channels, *input], weight: [out_channels, in_channels / groups * kernel[0] * kernel[1]], bias:
// [out_channels] or null, y: [batch, out_channels, *output]. T is float or double; all are contiguous.
template <Isa isa, class T>
void masked_conv2d(const T* x, const Weight<const T>& weight, const T* bias, T* y, const ConvSize& size,
                   const Parallel& parallel);

// grad: like y, x_grad: like x.
template <Isa isa, class T>
void masked_conv2d_input_grad(const T* grad, const Weight<const T>& weight, T* x_grad, const ConvSize& size,
                              const Parallel& parallel);

template <Isa isa, class T>
void masked_conv2d_weight_grad(const T* grad, const T* x, const Weight<T>& weight_grad, const ConvSize& size,
                               const Parallel& parallel);

}  // namespace sparseprune
