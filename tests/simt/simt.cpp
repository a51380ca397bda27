// The scheduler of the SIMT machine: see simt.h.
#include "simt.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"

namespace simt {

Place place;

namespace {

constexpr unsigned kYieldOneIn = 4;
constexpr int64_t kDefaultMaxBlocks = 3;     // so few that every kernel has to stride
constexpr int64_t kDefaultMaxCollected = 0;  // as few as a selection can do with

enum class State { kReady, kAtBarrier, kAtMeeting, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started;
  dim3 index;
  State state;
  std::array<uint64_t, kWarp> values;  // what the last meeting brought together
};

// A warp primitive that some lanes of its mask have not reached.
struct Gathering {
  Meeting kind;
  unsigned mask, arrived;
  std::array<uint64_t, kWarp> values;
};

struct Machine {
  std::vector<Fiber> fibers{kMaxThreads};
  std::vector<std::vector<Gathering>> gatherings{kMaxThreads / kWarp};
  std::vector<std::vector<unsigned>> ready{kMaxThreads / kWarp};  // by warp
  jmp_buf scheduler;
  const std::function<void()>* body = nullptr;
  unsigned threads = 0, running = 0, at_barrier = 0, favourite = 0;
  uint64_t change_one_in = 1;
  uint64_t seed = 0;
  int64_t max_blocks = kDefaultMaxBlocks;
  bool outer_blocks_only = false;
  int64_t max_collected = kDefaultMaxCollected;
  std::mt19937_64 random;
  std::string failure;
};

Machine& machine() {
  static Machine instance;
  return instance;
}

std::string text(dim3 index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) +
         ")";
}

void fiber_main() {
  Machine& m = machine();
  (*m.body)();
  m.fibers[m.running].state = State::kDone;
  _longjmp(m.scheduler, 1);
}

void suspend() {
  Machine& m = machine();
  if (_setjmp(m.fibers[m.running].resume) == 0) _longjmp(m.scheduler, 1);
}

// Returns when the fiber suspends or ends. A context is entered once; from then on the stacks are switched by
// _longjmp, which, unlike swapcontext, makes no system call.
void resume(Fiber& fiber) {
  if (_setjmp(machine().scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

void make_ready(unsigned thread) {
  machine().fibers[thread].state = State::kReady;
  machine().ready[thread / kWarp].push_back(thread);
}

void start_block(dim3 block) {
  Machine& m = machine();
  for (auto& warp : m.ready) warp.clear();
  m.at_barrier = 0;
  m.favourite = m.random() % ((m.threads + kWarp - 1) / kWarp);
  m.change_one_in = uint64_t{1} << m.random() % 16;
  for (auto& warp : m.gatherings) warp.clear();
  for (unsigned thread = 0; thread < m.threads; ++thread) {
    Fiber& fiber = m.fibers[thread];
    fiber.index = dim3(thread % block.x, thread / block.x % block.y, thread / block.x / block.y);
    fiber.started = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stack_of(thread);
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_main, 0);
    make_ready(thread);
  }
}

std::string deadlock() {
  const Machine& m = machine();
  std::string message = "no thread can go on:";
  const auto first_of = [&](State state, const char* words) {
    for (unsigned thread = 0; thread < m.threads; ++thread) {
      if (m.fibers[thread].state == state) {
        message += " thread " + text(m.fibers[thread].index) + words;
        return;
      }
    }
  };
  first_of(State::kAtBarrier, " waits at a block barrier;");
  first_of(State::kAtMeeting, " waits for lanes of its warp;");
  first_of(State::kDone, " has returned;");
  return message;
}

// Chooses a thread that can run, if there is one. One warp is preferred for as long as it can run, save now
// and then (how often differs by block): so warps get far ahead of each other, which a choice among all
// threads would prevent.
bool pick_thread() {
  Machine& m = machine();
  if (m.ready[m.favourite].empty() || m.random() % m.change_one_in == 0) {
    std::array<unsigned, kMaxThreads / kWarp> able{};
    size_t count = 0;
    for (unsigned warp = 0; warp < able.size(); ++warp) {
      if (!m.ready[warp].empty()) able[count++] = warp;
    }
    if (count == 0) return false;
    m.favourite = able[m.random() % count];
  }
  auto& ready = m.ready[m.favourite];
  std::swap(ready[m.random() % ready.size()], ready.back());
  m.running = ready.back();
  ready.pop_back();
  return true;
}

void run_block() {
  Machine& m = machine();
  while (m.failure.empty() && pick_thread()) {
    place.thread = m.fibers[m.running].index;
    enter_thread(m.running);
    resume(m.fibers[m.running]);
    leave_thread();
  }
  const auto done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
  if (m.failure.empty() && !std::all_of(m.fibers.begin(), m.fibers.begin() + m.threads, done))
    m.failure = deadlock();
}

// The blocks to be run, in the order in which they are.
std::vector<uint64_t> blocks_of(dim3 grid) {
  Machine& m = machine();
  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  if (m.outer_blocks_only) return count == 1 ? std::vector<uint64_t>{0} : std::vector<uint64_t>{count - 1, 0};
  std::vector<uint64_t> order(count);
  for (uint64_t i = 0; i < count; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), m.random);
  return order;
}

uintptr_t offset_here(uintptr_t address) {
  Dl_info info;
  return dladdr(reinterpret_cast<void*>(&machine), &info) == 0
             ? address
             : address - reinterpret_cast<uintptr_t>(info.dli_fbase);
}

}  // namespace

void set_seed(uint64_t seed) { machine().seed = seed; }

int64_t max_blocks() { return machine().max_blocks; }

int64_t max_collected() { return machine().max_collected; }

void set_max_collected(int64_t bound) { machine().max_collected = bound; }

void set_grids(int64_t max_blocks, bool outer_blocks_only) {
  machine().max_blocks = max_blocks > 0 ? max_blocks : kDefaultMaxBlocks;
  machine().outer_blocks_only = outer_blocks_only;
}

void run_grid(uintptr_t kernel, dim3 grid, dim3 block, size_t shared_bytes,
              const std::function<void()>& body) {
  Machine& m = machine();
  m.body = &body;
  m.threads = block.x * block.y * block.z;
  m.random.seed(m.seed);
  place.grid_size = grid;
  place.block_size = block;
  for (const uint64_t index : blocks_of(grid)) {
    place.block = dim3(static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                       static_cast<unsigned>(index / grid.x / grid.y));
    start_shared(shared_bytes);
    start_block(block);
    run_block();
    if (m.failure.empty()) continue;
    std::ostringstream message;
    message << "kernel +0x" << std::hex << offset_here(kernel) << ", block " << text(place.block) << ", "
            << std::exchange(m.failure, {});
    throw std::runtime_error(message.str());
  }
}

void sync_block() {
  Machine& m = machine();
  m.fibers[m.running].state = State::kAtBarrier;
  if (++m.at_barrier == m.threads) {
    m.at_barrier = 0;
    order_block();
    for (unsigned thread = 0; thread < m.threads; ++thread) make_ready(thread);
  }
  suspend();
}

const uint64_t* meet(Meeting kind, unsigned mask, uint64_t value) {
  Machine& m = machine();
  const unsigned self = m.running, first = self / kWarp * kWarp;
  if (!(mask >> lane() & 1u)) fail("a warp primitive's mask does not name the calling lane");
  auto& open = m.gatherings[self / kWarp];
  auto found =
      std::find_if(open.begin(), open.end(), [&](const Gathering& g) { return (g.mask & mask) != 0; });
  if (found == open.end()) found = open.insert(open.end(), Gathering{kind, mask, 0, {}});
  if (found->kind != kind || found->mask != mask)
    fail("lanes of a warp meet at different primitives or masks");
  found->values[lane()] = value;
  found->arrived |= 1u << lane();
  m.fibers[self].state = State::kAtMeeting;
  if (found->arrived == mask) {
    if (kind == Meeting::kSync) order_warp(self / kWarp);
    for (unsigned i = 0; i < kWarp; ++i) {
      if (!(mask >> i & 1u)) continue;
      m.fibers[first + i].values = found->values;
      make_ready(first + i);
    }
    open.erase(found);
  }
  suspend();
  return m.fibers[self].values.data();
}

void sync_warp(unsigned mask) { meet(Meeting::kSync, mask, 0); }

unsigned lane() { return machine().running % kWarp; }

void maybe_yield() {
  Machine& m = machine();
  if (m.random() % kYieldOneIn != 0) return;
  make_ready(m.running);
  suspend();
}

void fail(const char* message) {
  Machine& m = machine();
  m.failure = "thread " + text(m.fibers[m.running].index) + ": " + message;
  suspend();
  std::abort();
}

}  // namespace simt
