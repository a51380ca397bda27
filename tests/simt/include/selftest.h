// Kernels that test the SIMT machine itself, with what the kernels of csrc/cuda do not use.
#pragma once

#include <cstdint>
#include <vector>

namespace simt {

// The order in which the threads of one block passed an atomic counter.
std::vector<unsigned> order_of_threads(unsigned threads);

// How many bytes of a static and of a dynamic shared array hold 0xff when a block starts, over two blocks
// that fill both with zeros.
std::vector<unsigned> poisoned_bytes();

// `values`, one a thread of one block: summed over each warp by shuffles; the sums are then reversed through
// shared memory.
std::vector<int64_t> reverse_warp_sums(const std::vector<int64_t>& values);

}  // namespace simt
