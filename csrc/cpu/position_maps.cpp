#include <sparseprune/position_maps.h>

#include "position_windows.h"

namespace sparseprune {
namespace {

template <class T, class Body>
void for_channels(const Parallel& parallel, int64_t channels, int64_t width, T* out, int64_t out_width, const Body& body) {
  const int64_t grain = grain_of((width + out_width) * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      std::memset(out + c * out_width, 0, static_cast<size_t>(out_width) * sizeof(T));
      body(c, out + c * out_width);
    }
  });
}

template <class T>
inline bool is_zero(const T* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (values[i] != 0) return false;
  }
  return true;
}

// body(line, y) for each channel whose x is not zero, as that of a channel that masks have left dead; its x lies in line,
// with `behind` values more.
template <class T, class Body>
void for_living(const T* x, int64_t channels, int64_t from_width, int64_t behind, int64_t to_width, T* y,
                const Parallel& parallel, const Body& body) {
  const int64_t grain = grain_of((from_width + to_width) * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, channels, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> line(from_width + behind);
    for (int64_t i = 0; i < behind; ++i) line[from_width + i] = 0;
    for (int64_t c = begin; c < end; ++c) {
      const T* const in = x + c * from_width;
      T* const out = y + c * to_width;
      if (is_zero(in, from_width)) {
        std::memset(out, 0, static_cast<size_t>(to_width) * sizeof(T));
        continue;
      }
      std::memcpy(line.get(), in, static_cast<size_t>(from_width) * sizeof(T));
      body(line.get(), out);
    }
  });
}

}  // namespace

template <Isa isa, class T>
void map_positions(const T* x, const int32_t* starts, const int32_t* sources, const T* factors, int64_t channels,
                   int64_t from_width, int64_t to_width, T* y, const Parallel& parallel) {
  if constexpr (kPermutes<T>) {
    const PositionWindows windows(starts, sources, factors, to_width);
    for_living(x, channels, from_width, kLanes<T>, to_width, y, parallel,
               [&](const T* line, T* out) { windows.map(line, out); });
  } else {
    for_living(x, channels, from_width, 0, to_width, y, parallel, [&](const T* line, T* out) {
      for (int64_t j = 0; j < to_width; ++j) {
        T sum = 0;
        for (int32_t e = starts[j]; e < starts[j + 1]; ++e) sum += factors[e] * line[sources[e]];
        out[j] = sum;
      }
    });
  }
}

template <Isa isa, class T>
void max_positions(const T* x, const int32_t* windows, int64_t count, int64_t taps, int64_t channels,
                   int64_t from_width, int64_t to_width, T* y, int32_t* winners, const Parallel& parallel) {
  for_channels(parallel, channels, from_width + taps * to_width, y, to_width, [&](int64_t c, T* out) {
    const T* const in = x + c * from_width;
    int32_t* const best = winners + c * to_width;
    for (int64_t j = 0; j < to_width; ++j) best[j] = -1;
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t t = 0; t < taps; ++t) {
        const int32_t from = windows[j * taps + t];
        if (from >= 0 && (best[j] < 0 || in[from] > in[best[j]])) best[j] = from;
      }
      if (best[j] >= 0) out[j] = in[best[j]];
    }
  });
}

template <Isa isa, class T>
void max_positions_grad(const T* grad, const int32_t* winners, int64_t channels, int64_t from_width, int64_t to_width,
                        T* x_grad, const Parallel& parallel) {
  for_channels(parallel, channels, to_width, x_grad, from_width, [&](int64_t c, T* out) {
    for (int64_t j = 0; j < to_width; ++j) {
      const int32_t winner = winners[c * to_width + j];
      if (winner >= 0) out[winner] += grad[c * to_width + j];
    }
  });
}

#define SPARSEPRUNE_INSTANTIATE(T)                                                                             \
  template void map_positions<Isa::SPARSEPRUNE_ISA>(const T*, const int32_t*, const int32_t*, const T*,        \
                                                    int64_t, int64_t, int64_t, T*, const Parallel&);           \
  template void max_positions<Isa::SPARSEPRUNE_ISA>(const T*, const int32_t*, int64_t, int64_t, int64_t,       \
                                                    int64_t, int64_t, T*, int32_t*, const Parallel&);          \
  template void max_positions_grad<Isa::SPARSEPRUNE_ISA>(const T*, const int32_t*, int64_t, int64_t, int64_t,  \
                                                         T*, const Parallel&)
SPARSEPRUNE_INSTANTIATE(float);
SPARSEPRUNE_INSTANTIATE(double);
#undef SPARSEPRUNE_INSTANTIATE

}  // namespace sparseprune
