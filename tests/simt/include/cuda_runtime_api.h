// Twin of the CUDA runtime's header: the host calls that csrc/cuda makes.
#pragma once

#include <cstddef>
#include <tuple>
#include <utility>

#include "simt.h"

using cudaStream_t = struct SimtStream*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

namespace simt {

template <class... Params, size_t... I>
void run_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, void** args, size_t shared_bytes,
                std::index_sequence<I...>) {
  const std::tuple<Params...> copies{*static_cast<Params*>(args[I])...};
  // Not checked: this is the hardware's part, which hands the arguments to a thread.
  run_grid(reinterpret_cast<uintptr_t>(kernel), grid, block, shared_bytes,
           [&]() __attribute__((no_sanitize_thread)) { kernel(std::get<I>(copies)...); });
}

}  // namespace simt

template <class... Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params...), dim3 grid, dim3 block, void** args,
                             size_t shared_bytes, cudaStream_t) {
  const auto empty = [](dim3 size) { return size.x == 0 || size.y == 0 || size.z == 0; };
  if (empty(grid) || empty(block) || block.x * block.y * block.z > 1024) return cudaErrorInvalidConfiguration;
  simt::run_kernel(kernel, grid, block, args, shared_bytes, std::index_sequence_for<Params...>{});
  return cudaSuccess;
}
