// The scheduler of the SIMT machine: see simt.h.
#include "simt.h"

#include <link.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kWarp = 32;
constexpr unsigned kYieldOneIn = 4;

enum class State { kReady, kAtBarrier, kAtMeeting, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf resume;
  bool started;
  std::unique_ptr<char[]> stack;
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
  std::vector<uint64_t> dynamic_shared;
  jmp_buf scheduler;
  const std::function<void()>* body = nullptr;
  unsigned threads = 0, running = 0, at_barrier = 0, favourite = 0;
  uint64_t change_one_in = 1;
  uint64_t seed = 0;
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

// Fills the thread-local block of this library, which holds the kernels' shared variables and nothing else.
int poison_if_own(dl_phdr_info* info, size_t, void*) {
  const auto own = reinterpret_cast<ElfW(Addr)>(&machine);
  bool contains = false;
  size_t size = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & header = info->dlpi_phdr[i];
    const ElfW(Addr) start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && own >= start && own < start + header.p_memsz) contains = true;
    if (header.p_type == PT_TLS) size = header.p_memsz;
  }
  if (contains && info->dlpi_tls_data != nullptr) std::memset(info->dlpi_tls_data, 0xff, size);
  return contains ? 1 : 0;
}

void poison_shared(size_t dynamic_bytes) {
  dl_iterate_phdr(poison_if_own, nullptr);
  machine().dynamic_shared.assign((dynamic_bytes + 7) / 8, ~uint64_t{0});
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
    if (!fiber.stack) fiber.stack.reset(new char[kStack]);
    fiber.index = dim3(thread % block.x, thread / block.x % block.y, thread / block.x / block.y);
    fiber.started = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
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
    threadIdx = m.fibers[m.running].index;
    resume(m.fibers[m.running]);
  }
  const auto done = [](const Fiber& fiber) { return fiber.state == State::kDone; };
  if (m.failure.empty() && !std::all_of(m.fibers.begin(), m.fibers.begin() + m.threads, done))
    m.failure = deadlock();
  if (!m.failure.empty())
    throw std::runtime_error("block " + text(blockIdx) + ": " + std::exchange(m.failure, {}));
}

}  // namespace

void set_seed(uint64_t seed) { machine().seed = seed; }

void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  Machine& m = machine();
  m.body = &body;
  m.threads = block.x * block.y * block.z;
  m.random.seed(m.seed);
  gridDim = grid;
  blockDim = block;
  std::vector<unsigned> order(grid.x * grid.y * grid.z);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), m.random);
  for (const unsigned index : order) {
    blockIdx = dim3(index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y);
    poison_shared(shared_bytes);
    start_block(block);
    run_block();
  }
}

void sync_block() {
  Machine& m = machine();
  m.fibers[m.running].state = State::kAtBarrier;
  if (++m.at_barrier == m.threads) {
    m.at_barrier = 0;
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

unsigned lane() { return machine().running % kWarp; }

void maybe_yield() {
  Machine& m = machine();
  if (m.random() % kYieldOneIn != 0) return;
  make_ready(m.running);
  suspend();
}

void* dynamic_shared() { return machine().dynamic_shared.data(); }

void fail(const char* message) {
  Machine& m = machine();
  m.failure = "thread " + text(m.fibers[m.running].index) + ": " + message;
  suspend();
  std::abort();
}

}  // namespace simt
