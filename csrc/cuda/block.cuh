// Block-wide primitives. Written out, not CUB's, so that the emulator of the tests executes what the GPU
// executes.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace sparseprune::cuda {

// The sum of `value` over the lanes up to and with this one; whole warps call.
template <class T>
__device__ T warp_inclusive_sum(T value) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const T below = __shfl_up_sync(kFullWarp, value, distance);
    if (lane >= distance) value += below;
  }
  return value;
}

struct BlockSum {
  int64_t before, total;  // over the threads below this one, over all
};

// Sums `value` over the block; every thread of it must call, and between two calls there must be a barrier.
template <int kThreads>
__device__ BlockSum block_sum(int64_t value) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ int64_t warp_sums[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t inclusive = warp_inclusive_sum(value);
  if (lane == kWarp - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  BlockSum sum{inclusive - value, 0};
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    if (other < warp) sum.before += warp_sums[other];
    sum.total += warp_sums[other];
  }
  return sum;
}

}  // namespace sparseprune::cuda
