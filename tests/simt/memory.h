// What the scheduler (simt.cpp) and the checks (sanitizers.cpp) share with the memory of the SIMT machine
// (memory.cpp).
#pragma once

#include <cstddef>
#include <string>

namespace simt {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarp = 32;

// Start of a thread's stack of kStack bytes.
void* stack_of(unsigned thread);

// Poisons the static and the dynamic shared memory for a new block.
void start_shared(size_t dynamic_bytes);

// Accesses from here on are those of this thread; of the host.
void enter_thread(unsigned thread);
void leave_thread();

// Whether a thread runs; a message for raise_pending.
bool in_kernel();
void fail_later(const std::string& message);

// All threads of the block have met at a barrier; lanes of a warp at __syncwarp.
void order_block();
void order_warp(unsigned warp);

}  // namespace simt
