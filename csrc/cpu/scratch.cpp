#include "scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace sparseprune {

void* allocate_scratch(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool large = bytes >= 2 * kHugePage;
  // A small block has not a byte more than was asked for: AddressSanitizer sees what goes beyond.
  const size_t size = large ? (bytes / kHugePage + 1) * kHugePage : bytes;
  void* block = nullptr;
  if (posix_memalign(&block, large ? kHugePage : 64, size) != 0) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (large) madvise(block, size, MADV_HUGEPAGE);
#endif
  return block;
}

void free_scratch(void* block) { std::free(block); }

}  // namespace sparseprune
