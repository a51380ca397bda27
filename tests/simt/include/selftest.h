// Kernels that test the SIMT machine itself, with what the kernels of csrc/cuda do not use and with faults.
#pragma once

#include <cstdint>
#include <string>

namespace simt {

// Launches the kernel of this name on `values` and `out` with 128 bytes of dynamic shared memory.
void selftest(const std::string& name, uintptr_t values, uintptr_t out, unsigned blocks, unsigned threads);

}  // namespace simt
