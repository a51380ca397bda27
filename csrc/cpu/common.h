// Helpers of every kernel file. All is in an anonymous namespace and nothing of the standard library that
// could be emitted as a shared symbol is used: a helper compiled for AVX-512 must not be the copy that the
// portable code calls.
#pragma once

#include <cstdint>
#include <cstring>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sparseprune {
namespace {

// Below this many bytes of work a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 17;

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The least items of this many bytes of work that a thread gets.
inline int64_t grain_of(int64_t bytes) { return kGrainBytes / (bytes + 1) + 1; }

inline uint64_t load_bits(const int32_t* words, int64_t index64) {
  uint64_t bits;
  std::memcpy(&bits, words + 2 * index64, sizeof(bits));
  return bits;
}
inline void store_bits(int32_t* words, int64_t index64, uint64_t bits) {
  std::memcpy(words + 2 * index64, &bits, sizeof(bits));
}
inline int64_t count_kept(const int32_t* words, int64_t count64) {
  int64_t kept = 0;
  for (int64_t word = 0; word < count64; ++word) kept += __builtin_popcountll(load_bits(words, word));
  return kept;
}
inline uint64_t low_bits(int64_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

// body(begin, end) over [0, count).
template <class Body>
void for_ranges(const Parallel& parallel, int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  if (count <= grain || parallel.threads == 1) {
    body(int64_t{0}, count);
    return;
  }
  const auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  parallel.run(count, grain, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace
}  // namespace sparseprune
