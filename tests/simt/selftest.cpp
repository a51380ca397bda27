// The kernels of selftest.h.
#include "selftest.h"

#include "cuda_runtime.h"

namespace simt {
namespace {

constexpr unsigned kBytes = 40;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), unsigned blocks, unsigned threads, size_t shared_bytes, Args... args) {
  void* pointers[] = {&args...};
  cudaLaunchKernel(kernel, dim3(blocks), dim3(threads), pointers, shared_bytes, nullptr);
}

__global__ void order_kernel(unsigned* order, unsigned* counter) {
  order[atomicAdd(counter, 1u)] = threadIdx.x;
}

__global__ void poison_kernel(unsigned* found) {
  __shared__ uint8_t fixed[kBytes];
  uint8_t* dynamic = static_cast<uint8_t*>(dynamic_shared());
  if (fixed[threadIdx.x] == 0xff) atomicAdd(&found[0], 1u);
  if (dynamic[threadIdx.x] == 0xff) atomicAdd(&found[1], 1u);
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 0;
}

__global__ void reverse_kernel(int64_t* values) {
  __shared__ long long sums[32];
  const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32;
  long long sum = values[threadIdx.x];
  for (unsigned distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(~0u, sum, distance);
  if (threadIdx.x % 32 == 0) sums[warp] = sum;
  __syncthreads();
  if (warp == 0 && threadIdx.x < warps) values[threadIdx.x] = sums[warps - 1 - threadIdx.x];
}

}  // namespace

std::vector<unsigned> order_of_threads(unsigned threads) {
  std::vector<unsigned> order(threads);
  unsigned counter = 0;
  launch(order_kernel, 1, threads, 0, order.data(), &counter);
  return order;
}

std::vector<unsigned> poisoned_bytes() {
  std::vector<unsigned> found(2);
  launch(poison_kernel, 2, kBytes, kBytes, found.data());
  return found;
}

std::vector<int64_t> reverse_warp_sums(const std::vector<int64_t>& values) {
  std::vector<int64_t> copy = values;
  launch(reverse_kernel, 1, static_cast<unsigned>(values.size()), 0, copy.data());
  copy.resize(values.size() / 32);
  return copy;
}

}  // namespace simt
