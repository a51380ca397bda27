// A linear map over positions as permutations of whole vectors: all lanes of a result's vector whose sources lie within a
// vector's length of each other come by one load and one permutation. Neighbours mostly have neighbours as sources.
#pragma once

#include "scratch.h"
#include "simd.h"

namespace sparseprune {
namespace {

// Can vectors of T be permuted by numbers that are not known before?
template <class T>
constexpr bool kPermutes = sizeof(T) == 4 && kVectorBytes >= 32;

// Lane i: line[lanes[i]], 0 where lanes[i] is -1.
inline Vec<float> permuted([[maybe_unused]] const float* line, [[maybe_unused]] const int32_t* lanes) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_permutex2var_ps(_mm512_loadu_ps(line), _mm512_loadu_si512(lanes), _mm512_setzero_ps());
#elif defined(__AVX2__)
  const __m256i number = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
  const __m256 found = _mm256_permutevar8x32_ps(_mm256_loadu_ps(line), number);
  return (Vec<float>)_mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(number, 31)), found);
#else
  return Vec<float>{};
#endif
}

// y[j] = sum of factors[e] x[sources[e]] over e from starts[j] to starts[j + 1], of float32.
class PositionWindows {
 public:
  // There are no more windows than entries.
  PositionWindows(const int32_t* starts, const int32_t* sources, const float* factors, int64_t width)
      : width_(width), groups_(ceil_div(width, kWidth)), first_(groups_ + 1), windows_(starts[width]) {
    unit_ = true;
    for (int32_t e = 0; e < starts[width]; ++e) unit_ = unit_ && factors[e] == 1;
    if (!unit_) factors_.allocate(starts[width] * kWidth);
    first_[0] = 0;
    for (int64_t group = 0; group < groups_; ++group) {
      const int64_t begin = group * kWidth, lanes = min_of(kWidth, width - begin);
      int64_t longest = 0;
      for (int64_t i = 0; i < lanes; ++i) longest = max_of(longest, starts[begin + i + 1] - starts[begin + i]);
      first_[group + 1] = first_[group];
      // The r-th entries of all lanes together, so that each lane adds up its own in their order.
      for (int64_t r = 0; r < longest; ++r) add_entries(starts + begin, sources, factors, lanes, r, group);
    }
  }

  // line: the row of x, with a vector's length of anything behind it.
  void map(const float* line, float* y) const {
    for (int64_t group = 0; group < groups_; ++group) {
      Vec<float> sum{};
      for (int32_t w = first_[group]; w < first_[group + 1]; ++w) {
        const Vec<float> found = permuted(line + windows_[w].start, windows_[w].lanes);
        sum += unit_ ? found : load(factors_.get() + w * kWidth) * found;
      }
      const int64_t left = width_ - group * kWidth;
      if (left >= kWidth) {
        store(y + group * kWidth, sum);
      } else {
        std::memcpy(y + group * kWidth, &sum, static_cast<size_t>(left) * sizeof(float));
      }
    }
  }

 private:
  static constexpr int64_t kWidth = kLanes<float>;
  struct Window {
    int32_t start;
    int32_t lanes[kWidth];
  };

  void add_entries(const int32_t* starts, const int32_t* sources, const float* factors, int64_t lanes, int64_t r,
                   int64_t group) {
    bool waiting[kWidth] = {};
    int64_t left = 0;
    for (int64_t i = 0; i < lanes; ++i) {
      waiting[i] = starts[i] + r < starts[i + 1];
      left += waiting[i];
    }
    while (left > 0) {
      int32_t lowest = INT32_MAX;
      for (int64_t i = 0; i < lanes; ++i)
        if (waiting[i] && sources[starts[i] + r] < lowest) lowest = sources[starts[i] + r];
      const int32_t number = first_[group + 1]++;
      Window& window = windows_[number];
      window.start = lowest;
      for (int64_t i = 0; i < kWidth; ++i) {
        const bool here = waiting[i] && sources[starts[i] + r] < lowest + kWidth;
        window.lanes[i] = here ? sources[starts[i] + r] - lowest : -1;
        if (!unit_) factors_[number * kWidth + i] = here ? factors[starts[i] + r] : 0;
        left -= here;
        waiting[i] = waiting[i] && !here;
      }
    }
  }

  int64_t width_, groups_;
  bool unit_ = true;
  Scratch<int32_t> first_;
  Scratch<Window> windows_;
  Scratch<float> factors_;
};

}  // namespace
}  // namespace sparseprune
