// Block-wide primitives. Written out, not CUB's, so that the emulator of the tests executes what the GPU
// executes.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace sparseprune::cuda {

struct BlockSum {
  int64_t before, total;  // over the threads below this one, over all
};

// Sums `value` over the block; every thread of it must call.
template <int kThreads>
__device__ BlockSum block_sum(int64_t value) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ long long warp_sums[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  long long inclusive = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const long long below = __shfl_up_sync(kFullWarp, inclusive, distance);
    if (lane >= distance) inclusive += below;
  }
  if (lane == kWarp - 1) warp_sums[warp] = inclusive;
  __syncthreads();
  BlockSum sum{inclusive - value, 0};
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    if (other < warp) sum.before += warp_sums[other];
    sum.total += warp_sums[other];
  }
  __syncthreads();
  return sum;
}

}  // namespace sparseprune::cuda
