// Which of 64 scores lie above, within or below two bounds: the inner loop of the selection.
#pragma once

#include "simd.h"

namespace sparseprune {
namespace {

// Denormal scores are ordinary numbers here, whatever the caller's thread is set to: they are neither read as zeros nor
// rounded to them for as long as this lives.
class ExactDenormals {
 public:
#if defined(__x86_64__)
  ExactDenormals() : before_(__builtin_ia32_stmxcsr()) { __builtin_ia32_ldmxcsr(before_ & ~0x8040u); }
  ~ExactDenormals() { __builtin_ia32_ldmxcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  ExactDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ & ~(uint64_t{1} << 24)));
  }
  ~ExactDenormals() { asm volatile("msr fpcr, %0" ::"r"(before_)); }

 private:
  uint64_t before_;
#endif
};

enum class Is { equal, at_least, above };

// Bit i is set where scores[i] stands in this relation to the bound; a NaN stands in none.
template <Is is, class T>
inline uint64_t slots_that(const T* scores, T bound) {
  uint64_t slots = 0;
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<T> lanes = load(scores + i), bounds = splat(bound);
    if constexpr (is == Is::equal) slots |= lane_bits<T>(lanes == bounds) << i;
    if constexpr (is == Is::at_least) slots |= lane_bits<T>(lanes >= bounds) << i;
    if constexpr (is == Is::above) slots |= lane_bits<T>(lanes > bounds) << i;
  }
  return slots;
}

// The same in half the instructions: what comparisons give is put together before it becomes bits.
#if defined(__AVX2__)
template <Is is>
constexpr int kPredicate = is == Is::equal ? _CMP_EQ_OQ : is == Is::at_least ? _CMP_GE_OQ : _CMP_GT_OQ;
#endif
#if defined(__AVX512DQ__)
template <Is is>
inline uint64_t slots_that(const float* scores, float bound) {
  const __m512 bounds = _mm512_set1_ps(bound);
  const auto lanes = [&](int i) { return _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i), bounds, kPredicate<is>); };
  return _mm512_kunpackd(_mm512_kunpackw(lanes(48), lanes(32)), _mm512_kunpackw(lanes(16), lanes(0)));
}
#elif defined(__AVX2__)
template <Is is>
inline uint64_t slots_that(const float* scores, float bound) {
  const __m256 bounds = _mm256_set1_ps(bound);
  const auto lanes = [&](int i) {
    return _mm256_castps_si256(_mm256_cmp_ps(_mm256_loadu_ps(scores + i), bounds, kPredicate<is>));
  };
  const auto half = [&](int i) {
    // The packs work within each 128 bits: what they give is four bytes of every vector's lower half, then of the upper.
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(lanes(i), lanes(i + 8)),
                                             _mm256_packs_epi32(lanes(i + 16), lanes(i + 24)));
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(ordered)));
  };
  return half(0) | half(32) << 32;
}
#endif

template <class T>
inline uint64_t slots_nan(const T* scores) {
  uint64_t slots = 0;
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<T> lanes = load(scores + i);
    slots |= lane_bits<T>(lanes != lanes) << i;
  }
  return slots;
}
// Whether there is one.
template <class T>
inline bool any_nan(const T* scores) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {  // a comparison tells of two scores whether either is NaN
    const auto pair = [&](int i) {
      return _mm256_cmp_ps(_mm256_loadu_ps(scores + i), _mm256_loadu_ps(scores + i + 8), _CMP_UNORD_Q);
    };
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_or_ps(pair(0), pair(16)), _mm256_or_ps(pair(32), pair(48)))) != 0;
  }
#endif
  Vec<Int<T>> nan{};
  for (int i = 0; i < 64; i += kLanes<T>) {
    const Vec<T> lanes = load(scores + i);
    nan |= lanes != lanes;
  }
  return lane_bits<T>(nan) != 0;
}

// Scores above `high` are kept for certain and those below `low` are not; the threshold is one of those in between. With
// `ties` scores equal to a bound are told apart from those in between: so many may be equal that only counting them will
// do.
template <class T>
struct Bracket {
  T high = static_cast<T>(__builtin_inf());
  T low = -static_cast<T>(__builtin_inf());
  bool ties = false;
};

struct Places {
  uint64_t above, at_high, inside, at_low;
};

template <bool ties, class T>
inline Places places_of(const T* scores, uint64_t slots, const Bracket<T>& bracket) {
  const uint64_t above = slots_that<Is::above>(scores, bracket.high) & slots;
  const uint64_t from_low = slots_that<Is::at_least>(scores, bracket.low) & slots;
  if (!ties) return {above, 0, from_low & ~above, 0};
  const uint64_t from_high = slots_that<Is::at_least>(scores, bracket.high) & slots;
  const uint64_t over_low = slots_that<Is::above>(scores, bracket.low) & slots;
  return {above, from_high & ~above, over_low & ~from_high, from_low & ~over_low & ~from_high};
}

}  // namespace
}  // namespace sparseprune
