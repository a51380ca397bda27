// A SIMT machine on one CPU core, enough of CUDA to run the kernels of csrc/cuda compiled by a C++ compiler.
//
// The threads of a block are fibers of one OS thread. A fiber runs until it meets the others (a barrier, a
// warp primitive) or an atomic; then a thread chosen at random, by seed, among those that can run goes on,
// with a liking for one warp at a time. Whatever is right only for some orders of the threads therefore goes
// wrong under some seed.
//
// Shared memory: `__shared__` is `thread_local`, so that the shared variables of all kernels are the
// thread-local block of this library, which is filled with 0xff (NaN, -1) before every block. Nothing else
// here may be thread_local.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline
#define __shared__ static thread_local
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Set for the running fiber by the scheduler.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

enum class Meeting : int { kShuffle, kBallot, kMatch };

// Runs `body` once per thread of the grid. Throws std::runtime_error if threads can never meet.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// Seed of the schedule of all later launches.
void set_seed(uint64_t seed);

// Waits for every thread of the block.
void sync_block();

// Waits for the lanes of `mask`; returns the 64-bit values that they brought, by lane.
const uint64_t* meet(Meeting kind, unsigned mask, uint64_t value);

// The running thread's lane.
unsigned lane();

// Lets another thread go first, now and then.
void maybe_yield();

// Start of the block's dynamic shared memory.
void* dynamic_shared();

// Stops the launch with this message and the place of the running thread.
[[noreturn]] void fail(const char* message);

}  // namespace simt
