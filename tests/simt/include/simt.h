// A SIMT machine on one CPU core, enough of CUDA to run the kernels of csrc/cuda compiled by a C++ compiler.
//
// The threads of a block are fibers of one OS thread. A fiber runs until it meets the others (a barrier, a
// warp primitive) or an atomic; then a thread chosen at random, by seed, among those that can run goes on,
// with a liking for one warp at a time. Whatever is right only for some orders of the threads therefore goes
// wrong under some seed.
//
// Memory: the kernels are compiled with -fsanitize=thread, and the functions that the compiler then calls
// before every load and store are this machine's (sanitizers.cpp), as are those of -fsanitize=alignment and
// the like: what a kernel may touch are its launch's buffers, its own stack and its block's shared memory,
// the last without races.
//
// Shared memory: `__shared__` is `thread_local`, so that the shared variables of all kernels are the
// thread-local block of this library, which is filled with 0xff (NaN, -1) before every block. Nothing else
// here may be thread_local.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

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

namespace simt {

// The running thread's place in its grid, set by the scheduler.
struct Place {
  dim3 thread, block, block_size, grid_size;
};
extern Place place;

enum class Meeting : int {
  kShuffle,
  kVote,
  kMatch,
  kSync,
  kReduceAdd,
  kReduceMin,
  kReduceMax,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
};
enum class Access : int { kRead, kWrite, kAtomic };

// Name, address, bytes and whether kernels may write.
using Buffer = std::tuple<std::string, uintptr_t, size_t, bool>;

// Runs `body`, a call of `kernel`, once per thread of the grid. Throws std::runtime_error that names the
// kernel (as "+0x..", its offset in this library), the block and the thread if threads can never meet, or on
// a faulty access.
void run_grid(uintptr_t kernel, dim3 grid, dim3 block, size_t shared_bytes,
              const std::function<void()>& body);

// Seed of the schedule of all later launches.
void set_seed(uint64_t seed);

// All that later launches may touch, besides a block's own memory. Buffers must lie 16 bytes apart at least.
void set_buffers(std::vector<Buffer> buffers);

// Within a buffer, kGap bytes from here on are touched by no kernel until set_buffers is called again.
constexpr size_t kGap = 64;
void forbid(const void* address);

// The bound on a grid that the kernels are compiled with, and whether later launches run their first and last
// block alone: both are for indices beyond 2^31, where running all blocks would take hours.
int64_t max_blocks();
void set_grids(int64_t max_blocks, bool outer_blocks_only);

// The bound on the slots that a selection collects.
int64_t max_collected();
void set_max_collected(int64_t bound);

// Throws what went wrong on the host's side of the launches since the last call.
void raise_pending();

// Waits for every thread of the block.
void sync_block();

// Waits for the lanes of `mask`; returns the 64-bit values that they brought, by lane.
const uint64_t* meet(Meeting kind, unsigned mask, uint64_t value);

// Waits for the lanes of `mask`, and orders their accesses to shared memory.
void sync_warp(unsigned mask);

// The running thread's lane.
unsigned lane();

// Lets another thread go first, now and then.
void maybe_yield();

// Start of the block's dynamic shared memory.
void* dynamic_shared();

// Fails unless the running thread may do this.
void touch(const void* address, size_t size, Access access);

// Stops the launch with this message and the place of the running thread.
[[noreturn]] void fail(const char* message);

}  // namespace simt

#define threadIdx (::simt::place.thread)
#define blockIdx (::simt::place.block)
#define blockDim (::simt::place.block_size)
#define gridDim (::simt::place.grid_size)
