// Launching kernels: one checked function, and the size of grids.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

// Every kernel strides over its work by the grid, so this bounds the blocks of a launch without bounding the
// work; tests lower it to a handful to execute the striding at small sizes.
#ifndef SPARSEPRUNE_MAX_BLOCKS
#define SPARSEPRUNE_MAX_BLOCKS 65535
#endif

// Bytes that lie unused behind each array of a workspace, and what is done with them: tests forbid every
// kernel to touch them.
#ifndef SPARSEPRUNE_GAP
#define SPARSEPRUNE_GAP 0
#define SPARSEPRUNE_FORBID(address) static_cast<void>(address)
#endif

namespace sparseprune::cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

template <class T>
struct Identity {
  using type = T;
};

// Blocks that give every one of `items` a block of its own (or an `items_per_block`-th of one), at most
// `limit`.
inline dim3 grid_for(int64_t items, int64_t items_per_block = 1, int64_t limit = SPARSEPRUNE_MAX_BLOCKS) {
  const int64_t blocks = (items + items_per_block - 1) / items_per_block;
  return dim3(static_cast<unsigned>(std::min({blocks, limit, int64_t{SPARSEPRUNE_MAX_BLOCKS}})));
}

// Enqueues kernel(args...). cudaLaunchKernel instead of <<<>>> keeps these files plain C++ outside of the
// kernels, so that the emulator of the tests compiles them unchanged.
template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, int threads, cudaStream_t stream,
                   typename Identity<Params>::type... args) {
  void* pointers[] = {&args...};
  return cudaLaunchKernel(kernel, grid, dim3(static_cast<unsigned>(threads)), pointers, size_t{0}, stream);
}

}  // namespace sparseprune::cuda
