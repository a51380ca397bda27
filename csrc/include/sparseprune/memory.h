#pragma once

#include <cstddef>

namespace sparseprune {

// Asks for huge pages where a large block, of whoever's, has not been touched yet: a fresh block of 100 MB costs 25,000
// page faults in small ones, more than the arithmetic that fills it.
void ask_for_huge_pages(void* block, size_t bytes);

}  // namespace sparseprune
