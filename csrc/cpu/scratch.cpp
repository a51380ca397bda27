#include "scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace sparseprune {

void* allocate_scratch(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
  const size_t rounded = (bytes / alignment + 1) * alignment;
  void* block = std::aligned_alloc(alignment, rounded);
  if (block == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) madvise(block, rounded, MADV_HUGEPAGE);
#endif
  return block;
}

void free_scratch(void* block) { std::free(block); }

}  // namespace sparseprune
