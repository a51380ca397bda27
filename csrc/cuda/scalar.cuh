// Element types: what a stored type is accumulated in, conversions, and 64-bit division that is cheap when it
// can be.
#pragma once

#include <cstdint>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "sparseprune/cuda/dtype.h"

namespace sparseprune::cuda {

template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using Acc = typename Accumulator<T>::type;

__device__ inline float widen(__half value) { return __half2float(value); }
__device__ inline float widen(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }

template <class T>
__device__ inline T narrow(Acc<T> value) {
  return value;
}
template <>
__device__ inline __half narrow<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

struct QuotientRemainder {
  int64_t quotient, remainder;
};

// a / b for a >= 0, b > 0. A 64-bit division costs several 32-bit ones, and almost every index fits in 32
// bits.
__device__ inline QuotientRemainder divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const uint32_t a32 = static_cast<uint32_t>(a), b32 = static_cast<uint32_t>(b);
    return {a32 / b32, a32 % b32};
  }
  return {a / b, a % b};
}

template <class T>
struct Type {
  using type = T;
};

// Calls body(Type<T>{}) for the C++ type of `dtype`.
template <class Body>
auto for_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat16:
      return body(Type<__half>{});
    case Dtype::kBFloat16:
      return body(Type<__nv_bfloat16>{});
    case Dtype::kFloat32:
      return body(Type<float>{});
    default:
      return body(Type<double>{});
  }
}

}  // namespace sparseprune::cuda
