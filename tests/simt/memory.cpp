// The memory of the SIMT machine: who may touch what, and in which order (see simt.h).
//
// An access to shared memory races with another thread's if one of them writes, they are not both atomic, and
// no barrier lies between. (Lanes of one warp that met at __syncwarp, with whatever mask, count as ordered.)
#include "memory.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "simt.h"

namespace simt {
namespace {

constexpr uintptr_t kGranule = 4;       // bytes of shared memory that have one record
constexpr uintptr_t kApart = 16;        // bytes between two buffers: the widest access
constexpr uint16_t kSeveral = 0xffff;  // readers

thread_local volatile char anchor;  // whose use makes the library's thread-local block exist

// The last accesses to a granule, each with the bytes it was to. Times are intervals between barriers.
struct Record {
  uint32_t block, write_time, read_time, write_sync, read_sync;
  uint16_t writer, reader, reader_warp;
  uint8_t written, write_bytes, read_bytes;
  bool atomic;
};

struct Region {
  uintptr_t begin = 0;
  size_t size = 0;
  std::vector<Record> records;

  bool contains(uintptr_t address, size_t bytes) const {
    return address - begin < size && bytes <= size - (address - begin);
  }
  void start(void* memory, size_t bytes) {
    begin = reinterpret_cast<uintptr_t>(memory);
    size = bytes;
    records.resize(bytes / kGranule + 2);
  }
};

struct Memory {
  char* stacks = nullptr;
  std::vector<Buffer> buffers;  // by address
  std::vector<uintptr_t> gaps;  // each of kGap bytes that nobody may touch
  Region fixed, dynamic;        // shared memory
  std::vector<uint64_t> dynamic_bytes;
  uint32_t block = 0, time = 0;
  std::array<uint32_t, kMaxThreads / kWarp> syncs{};
  unsigned thread = 0;
  bool running = false;  // a thread, not the host
  std::string pending;
};

Memory& memory() {
  static Memory instance;
  return instance;
}

// Finds the thread-local block of this library, which holds the kernels' shared variables and nothing else.
int find_own_block(dl_phdr_info* info, size_t, void* result) {
  const auto own = reinterpret_cast<ElfW(Addr)>(&memory);
  bool contains = false;
  size_t size = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & header = info->dlpi_phdr[i];
    const ElfW(Addr) start = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && own >= start && own < start + header.p_memsz) contains = true;
    if (header.p_type == PT_TLS) size = header.p_memsz;
  }
  if (!contains) return 0;
  *static_cast<std::pair<void*, size_t>*>(result) = {info->dlpi_tls_data, size};
  return 1;
}

std::string by_thread(unsigned thread) {
  const dim3 size = place.block_size;
  return "thread (" + std::to_string(thread % size.x) + ", " + std::to_string(thread / size.x % size.y) +
         ", " + std::to_string(thread / size.x / size.y) + ")";
}

const char* verb(Access access) {
  return access == Access::kRead ? "reads " : access == Access::kWrite ? "writes " : "updates ";
}

std::string bytes_text(size_t size) { return std::to_string(size) + (size == 1 ? " byte" : " bytes"); }

[[noreturn]] void fail(const std::string& message) { simt::fail(message.c_str()); }

// One granule; `bytes` has a bit for each byte of it that is accessed.
void order_access(Record& record, uint8_t bytes, Access access) {
  Memory& m = memory();
  const auto self = static_cast<uint16_t>(m.thread), warp = static_cast<uint16_t>(m.thread / kWarp);
  const uint32_t sync = m.syncs[warp];
  if (record.block != m.block) {
    record = {};
    record.block = m.block;
  }
  if (access != Access::kWrite && (bytes & ~record.written) != 0)
    fail(std::string(verb(access)) + "shared memory that no thread of its block has written");
  if (record.write_time == m.time && (record.write_bytes & bytes) != 0 && record.writer != self &&
      !(record.atomic && access == Access::kAtomic) &&
      !(record.writer / kWarp == warp && record.write_sync != sync))
    fail(std::string(verb(access)) + "shared memory that " + by_thread(record.writer) +
         " wrote, and no barrier lies between");
  if (access == Access::kRead) {
    if (record.read_time != m.time) {
      record.reader = self;
      record.reader_warp = warp;
      record.read_bytes = 0;
    }
    if (record.reader != self) record.reader = kSeveral;
    if (record.reader_warp != warp) record.reader_warp = kSeveral;
    record.read_time = m.time;
    record.read_sync = sync;
    record.read_bytes |= bytes;
    return;
  }
  if (record.read_time == m.time && (record.read_bytes & bytes) != 0 && record.reader != self &&
      !(record.reader_warp == warp && record.read_sync != sync))
    fail(std::string(verb(access)) + "shared memory that " +
         (record.reader == kSeveral ? "other threads" : by_thread(record.reader)) +
         " read, and no barrier lies between");
  record.atomic = access == Access::kAtomic;
  record.writer = self;
  record.write_time = m.time;
  record.write_sync = sync;
  record.write_bytes = bytes;
  record.written |= bytes;
}

void touch_shared(Region& region, uintptr_t address, size_t size, Access access) {
  const uintptr_t end = address + size;
  for (uintptr_t granule = address / kGranule; granule * kGranule < end; ++granule) {
    const uintptr_t first = granule * kGranule, from = std::max(first, address) - first,
                    to = std::min(first + kGranule, end) - first;
    const auto bytes = static_cast<uint8_t>((1u << to) - (1u << from));
    order_access(region.records[granule - region.begin / kGranule], bytes, access);
  }
}

// Names the buffer that was missed by the least.
std::string missed(uintptr_t address, size_t size, Access access) {
  std::string nearest;
  uintptr_t least = ~uintptr_t{0};
  for (const auto& [name, begin, bytes, writable] : memory().buffers) {
    const bool before = address < begin;
    const uintptr_t distance = before ? begin - address : address - std::min(address, begin + bytes);
    if (distance >= least) continue;
    least = distance;
    nearest = before ? bytes_text(distance) + " before `" + name + "`"
                     : bytes_text(distance) + " behind the end of `" + name + "`";
  }
  return verb(access) + bytes_text(size) + " outside of its buffers" +
         (nearest.empty() ? ", of which there are none" : ", " + nearest);
}

void touch_buffer(uintptr_t address, size_t size, Access access) {
  const auto& buffers = memory().buffers;
  auto found = std::upper_bound(buffers.begin(), buffers.end(), address,
                                [](uintptr_t a, const Buffer& b) { return a < std::get<1>(b); });
  if (found == buffers.begin()) fail(missed(address, size, access));
  const auto& [name, begin, bytes, writable] = *--found;
  if (address - begin >= bytes || size > bytes - (address - begin)) fail(missed(address, size, access));
  for (const uintptr_t gap : memory().gaps) {
    if (address + size > gap && address < gap + kGap)
      fail(verb(access) + bytes_text(size) + " between the arrays of `" + name + "`");
  }
  if (access != Access::kRead && !writable) fail(verb(access) + ("`" + name) + "`, which is an input");
}

}  // namespace

void* stack_of(unsigned thread) {
  Memory& m = memory();
  if (m.stacks == nullptr) {
    void* mapped = mmap(nullptr, kStack * kMaxThreads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    m.stacks = static_cast<char*>(mapped);
  }
  return m.stacks + thread * kStack;
}

void start_shared(size_t dynamic_bytes) {
  Memory& m = memory();
  anchor = 0;
  std::pair<void*, size_t> block{nullptr, 0};
  dl_iterate_phdr(find_own_block, &block);
  m.fixed.start(block.first, block.second);
  std::memset(block.first, 0xff, block.second);
  m.dynamic_bytes.assign((dynamic_bytes + 7) / 8, ~uint64_t{0});
  m.dynamic.start(m.dynamic_bytes.data(), dynamic_bytes);
  ++m.block;
  ++m.time;
}

void* dynamic_shared() { return memory().dynamic_bytes.data(); }

void enter_thread(unsigned thread) {
  memory().thread = thread;
  memory().running = true;
}
void leave_thread() { memory().running = false; }

void order_block() { ++memory().time; }
void order_warp(unsigned warp) { ++memory().syncs[warp]; }

void set_buffers(std::vector<Buffer> buffers) {
  std::sort(buffers.begin(), buffers.end(),
            [](const Buffer& a, const Buffer& b) { return std::get<1>(a) < std::get<1>(b); });
  for (size_t i = 1; i < buffers.size(); ++i) {
    if (std::get<1>(buffers[i - 1]) + std::get<2>(buffers[i - 1]) + kApart > std::get<1>(buffers[i]))
      throw std::invalid_argument("`" + std::get<0>(buffers[i - 1]) + "` and `" + std::get<0>(buffers[i]) +
                                  "` must lie 16 bytes apart");
  }
  memory().buffers = std::move(buffers);
  memory().gaps.clear();
}

void forbid(const void* address) { memory().gaps.push_back(reinterpret_cast<uintptr_t>(address)); }

void raise_pending() {
  if (!memory().pending.empty()) throw std::runtime_error(std::exchange(memory().pending, {}));
}

bool in_kernel() { return memory().running; }

void fail_later(const std::string& message) { memory().pending = message; }

void touch(const void* pointer, size_t size, Access access) {
  Memory& m = memory();
  if (!m.running) return;
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (address - reinterpret_cast<uintptr_t>(&place) < sizeof(place)) return;
  const uintptr_t in_stacks = address - reinterpret_cast<uintptr_t>(m.stacks);
  if (in_stacks < kStack * kMaxThreads) {
    if (in_stacks / kStack != m.thread)
      fail(std::string(verb(access)) + "a local variable of another thread");
    return;
  }
  if (m.fixed.contains(address, size)) return touch_shared(m.fixed, address, size, access);
  if (m.dynamic.contains(address, size)) return touch_shared(m.dynamic, address, size, access);
  touch_buffer(address, size, access);
}

}  // namespace simt
