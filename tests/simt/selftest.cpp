// The kernels of selftest.h. Those named after a fault have it.
#include "selftest.h"

#include <map>
#include <stdexcept>

#include "cuda_runtime.h"

namespace simt {
namespace {

constexpr unsigned kBytes = 40;
constexpr unsigned kDynamicBytes = 128;
constexpr unsigned kWarpSize = 32;
constexpr unsigned kFull = ~0u;

// The order in which threads pass an atomic counter, which is the last element of `out`.
__global__ void order(const unsigned*, unsigned* out) {
  out[atomicAdd(&out[blockDim.x], 1u)] = threadIdx.x;
}

// How many bytes of a static and of a dynamic shared array hold 0xff when a block starts. Not checked,
// because no kernel may read what nobody wrote.
__attribute__((no_sanitize_thread)) void poison(const unsigned*, unsigned* out) {
  __shared__ uint8_t fixed[kBytes];
  uint8_t* dynamic = static_cast<uint8_t*>(dynamic_shared());
  if (threadIdx.x >= kBytes) return;
  if (fixed[threadIdx.x] == 0xff) atomicAdd(&out[0], 1u);
  if (dynamic[threadIdx.x] == 0xff) atomicAdd(&out[1], 1u);
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 0;
}

// Sums over each warp by shuffles, then reversed through shared memory.
__global__ void reverse(const unsigned* values, unsigned* out) {
  __shared__ long long sums[32];
  const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32;
  long long sum = values[threadIdx.x];
  for (unsigned distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(kFull, sum, distance);
  if (threadIdx.x % 32 == 0) sums[warp] = sum;
  __syncthreads();
  if (warp == 0 && threadIdx.x < warps) {
    out[threadIdx.x] = static_cast<unsigned>(sums[warps - 1 - threadIdx.x]);
  }
}

// What every warp primitive gives to every thread, the odd lanes and the even ones apart.
__global__ void warp(const unsigned* values, unsigned* out) {
  const unsigned mask = threadIdx.x % 2 == 0 ? 0x55555555u : 0xaaaaaaaau, value = values[threadIdx.x];
  const int negative = -static_cast<int>(value);
  unsigned* own = out + threadIdx.x * 12;
  own[0] = __reduce_add_sync(mask, value);
  own[1] = static_cast<unsigned>(__reduce_add_sync(mask, negative));
  own[2] = __reduce_min_sync(mask, value);
  own[3] = static_cast<unsigned>(__reduce_min_sync(mask, negative));
  own[4] = __reduce_max_sync(mask, value);
  own[5] = static_cast<unsigned>(__reduce_max_sync(mask, negative));
  own[6] = __reduce_and_sync(mask, value);
  own[7] = __reduce_or_sync(mask, value);
  own[8] = __reduce_xor_sync(mask, value);
  own[9] = __match_any_sync(mask, value % 3);
  own[10] = __ballot_sync(mask, value % 3 == 0);
  own[11] = static_cast<unsigned>(__any_sync(mask, value == 7) + 2 * __all_sync(mask, value < 1000));
}

template <bool kAtomic>
__global__ void histogram(const unsigned* values, unsigned* out) {
  __shared__ unsigned bins[4];
  if (threadIdx.x < 4) bins[threadIdx.x] = 0;
  __syncthreads();
  if constexpr (kAtomic) {
    atomicAdd(&bins[values[threadIdx.x] % 4], 1u);
  } else {
    ++bins[values[threadIdx.x] % 4];
  }
  __syncthreads();
  if (threadIdx.x < 4) out[threadIdx.x] = bins[threadIdx.x];
}

// Neighbours of a warp exchange values through shared memory.
template <bool kSync>
__global__ void exchange(const unsigned* values, unsigned* out) {
  __shared__ unsigned shared[64];
  shared[threadIdx.x] = values[threadIdx.x];
  if (kSync) __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1u];
}

// Words and bytes of dynamic shared memory, each written by one thread and read by another.
__global__ void bytes(const unsigned* values, unsigned* out) {
  uint8_t* shared = static_cast<uint8_t*>(dynamic_shared());
  shared[threadIdx.x] = static_cast<uint8_t>(values[threadIdx.x]);
  __syncthreads();
  if (threadIdx.x % 4 == 0) {
    out[threadIdx.x / 4] = *reinterpret_cast<unsigned*>(shared + threadIdx.x);
  }
}

__global__ void behind_dynamic_shared(const unsigned*, unsigned*) {
  static_cast<uint8_t*>(dynamic_shared())[kDynamicBytes] = 0;
}

// Four words at a time, from the word on that values[0] says.
__global__ void vector(const unsigned* values, unsigned* out) {
  const uint4 four = *reinterpret_cast<const uint4*>(values + values[0]);
  out[0] = four.x + four.y + four.z + four.w;
}

__global__ void write_input(const unsigned* values, unsigned*) {
  if (threadIdx.x == 5) const_cast<unsigned*>(values)[0] = 1;
}

__global__ void overflow(const unsigned* values, unsigned* out) {
  const int value = static_cast<int>(values[threadIdx.x]);
  out[threadIdx.x] = static_cast<unsigned>(value * 65536);
}

__global__ void shift(const unsigned* values, unsigned* out) { out[threadIdx.x] = 1u << values[threadIdx.x]; }

__global__ void outside_of_array(const unsigned* values, unsigned* out) {
  __shared__ unsigned first[32], second[32];
  first[threadIdx.x % 32] = second[threadIdx.x % 32] = 0;
  __syncthreads();
  out[threadIdx.x] = first[values[threadIdx.x]] + second[0];
}

__global__ void caller_not_in_mask(const unsigned*, unsigned* out) {
  out[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, 0);
}

__global__ void source_not_in_mask(const unsigned*, unsigned* out) {
  if (threadIdx.x % kWarpSize < 16) out[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, 16);
}

__global__ void other_primitive(const unsigned*, unsigned* out) {
  out[threadIdx.x] = threadIdx.x % 2 == 0 ? __reduce_add_sync(kFull, 1u) : __reduce_max_sync(kFull, 1u);
}

__global__ void lane_returned(const unsigned*, unsigned* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __ballot_sync(kFull, 1);
}

__global__ void barrier_in_branch(const unsigned*, unsigned*) {
  if (threadIdx.x < 7) __syncthreads();
}

using Kernel = void (*)(const unsigned*, unsigned*);
const std::map<std::string, Kernel> kKernels = {
    {"order", order},
    {"poison", poison},
    {"reverse", reverse},
    {"warp", warp},
    {"histogram", histogram<true>},
    {"racy_histogram", histogram<false>},
    {"exchange", exchange<true>},
    {"racy_exchange", exchange<false>},
    {"bytes", bytes},
    {"behind_dynamic_shared", behind_dynamic_shared},
    {"vector", vector},
    {"write_input", write_input},
    {"overflow", overflow},
    {"shift", shift},
    {"outside_of_array", outside_of_array},
    {"caller_not_in_mask", caller_not_in_mask},
    {"source_not_in_mask", source_not_in_mask},
    {"other_primitive", other_primitive},
    {"lane_returned", lane_returned},
    {"barrier_in_branch", barrier_in_branch},
};

}  // namespace

void selftest(const std::string& name, uintptr_t values, uintptr_t out, unsigned blocks, unsigned threads) {
  const auto* first = reinterpret_cast<const unsigned*>(values);
  auto* second = reinterpret_cast<unsigned*>(out);
  void* arguments[] = {&first, &second};
  const cudaError_t error =
      cudaLaunchKernel(kKernels.at(name), dim3(blocks), dim3(threads), arguments, kDynamicBytes, nullptr);
  if (error != cudaSuccess) throw std::runtime_error("the launch failed");
}

}  // namespace simt
