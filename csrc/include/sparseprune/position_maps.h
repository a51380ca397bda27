// Linear maps and maxima over the positions of a feature map, the same for every channel.
#pragma once

#include <cstdint>

#include <sparseprune/isa.h>
#include <sparseprune/parallel.h>

namespace sparseprune {

// y[c, j] = sum of factors[e] x[c, sources[e]] over e from starts[j] to starts[j + 1]. x: [channels, from_width], y:
// [channels, to_width].
template <Isa isa, class T>
void map_positions(const T* x, const int32_t* starts, const int32_t* sources, const T* factors, int64_t channels,
                   int64_t from_width, int64_t to_width, T* y, const Parallel& parallel);

// y[c, j] = max of x[c, windows[j, :]] over entries that are not negative, winners[c, j] the first that is largest.
// windows: [count, taps]. y, winners: [channels, to_width]; beyond count they are 0 and -1.
template <Isa isa, class T>
void max_positions(const T* x, const int32_t* windows, int64_t count, int64_t taps, int64_t channels,
                   int64_t from_width, int64_t to_width, T* y, int32_t* winners, const Parallel& parallel);

// x_grad[c, winners[c, j]] += grad[c, j]; winners that are negative get nothing.
template <Isa isa, class T>
void max_positions_grad(const T* grad, const int32_t* winners, int64_t channels, int64_t from_width, int64_t to_width,
                        T* x_grad, const Parallel& parallel);

}  // namespace sparseprune
