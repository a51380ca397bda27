// y = x (W . m)^T + b and its gradients. Pruned slots of W are never read into arithmetic.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>
#include <sparseprune/weight.h>

namespace sparseprune {

// in and out are below 2^31.
struct LinearSize {
  int64_t batch;
  int64_t in;
  int64_t out;
};

// x: [batch, in], weight: [out, in], bias: [out] or null, y: [batch, out]. T is float or double; all are row-major and
// contiguous.
template <Isa isa, class T>
void masked_linear(const T* x, const Weight<const T>& weight, const T* bias, T* y, const LinearSize& size,
                   const Parallel& parallel);

// dx = g (W . m); grad: [batch, out], x_grad: [batch, in].
template <Isa isa, class T>
void masked_linear_input_grad(const T* grad, const Weight<const T>& weight, T* x_grad, const LinearSize& size,
                              const Parallel& parallel);

// dW = (g^T x) . m.
template <Isa isa, class T>
void masked_linear_weight_grad(const T* grad, const T* x, const Weight<T>& weight_grad, const LinearSize& size,
                               const Parallel& parallel);

}  // namespace sparseprune
