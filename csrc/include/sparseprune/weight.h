// A masked weight of [rows, columns], or its gradient: dense or packed.
#pragma once

#include <cstdint>

namespace sparseprune {

// words: the packed mask. values: the dense matrix, of which the kernels neither read pruned slots nor write
// anything but 0 to them; or, where start is given, its survivors alone in the mask's order, those of row r being
// [start[r], start[r + 1]).
template <class T>
struct Weight {
  T* values;
  const int32_t* words;
  const int64_t* start;

  bool packed() const { return start != nullptr; }
};

}  // namespace sparseprune
