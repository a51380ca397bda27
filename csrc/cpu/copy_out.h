// How a finished line of a result is written.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace sparseprune {
namespace {

// A result of this size is read from memory anyway, whoever reads it.
template <class T>
inline bool is_past_caches(int64_t count) {
  return count * static_cast<int64_t>(sizeof(T)) >= int64_t{1} << 24;
}

// Before another thread reads what was copied past the caches.
inline void copied_out() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

// Copies; past the caches where asked for and the level can, so that memory is written without being read first.
template <class T>
inline void copy_out(const T* from, T* to, int64_t count, [[maybe_unused]] bool past_caches) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  using Line = __m512i;
  const auto load_line = [](const T* line) { return _mm512_loadu_si512(line); };
  const auto stream = [](T* line, Line values) { _mm512_stream_si512(reinterpret_cast<Line*>(line), values); };
#else
  using Line = __m256i;
  const auto load_line = [](const T* line) { return _mm256_loadu_si256(reinterpret_cast<const Line*>(line)); };
  const auto stream = [](T* line, Line values) { _mm256_stream_si256(reinterpret_cast<Line*>(line), values); };
#endif
  if (past_caches) {
    constexpr int64_t step = sizeof(Line) / sizeof(T);
    const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % sizeof(Line) / sizeof(T));
    const int64_t head = min_of(count, misaligned == 0 ? 0 : step - misaligned);
    std::memcpy(to, from, static_cast<size_t>(head) * sizeof(T));
    int64_t i = head;
    for (; i + step <= count; i += step) stream(to + i, load_line(from + i));
    std::memcpy(to + i, from + i, static_cast<size_t>(count - i) * sizeof(T));
    return;
  }
#endif
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

}  // namespace
}  // namespace sparseprune
