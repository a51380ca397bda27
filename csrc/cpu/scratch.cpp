#include "scratch.h"

#include <sparseprune/memory.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace sparseprune {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

void* allocate_scratch(size_t bytes) {
  const bool large = bytes >= 2 * kHugePage;
  // A small block has not a byte more than was asked for: AddressSanitizer sees what goes beyond.
  const size_t size = large ? (bytes / kHugePage + 1) * kHugePage : bytes;
  void* block = nullptr;
  if (posix_memalign(&block, large ? kHugePage : 64, size) != 0) throw std::bad_alloc();
  if (large) ask_for_huge_pages(block, size);
  return block;
}

void ask_for_huge_pages(void* block, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t address = reinterpret_cast<uintptr_t>(block), mask = kHugePage - 1;
  const uintptr_t begin = (address + mask) & ~mask, end = (address + bytes) & ~mask;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void free_scratch(void* block) { std::free(block); }

}  // namespace sparseprune
