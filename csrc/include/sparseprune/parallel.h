// How a kernel uses threads without knowing whose they are.
#pragma once

#include <cstdint>

namespace sparseprune {

// Runs body(begin, end, context) over ranges that cover [0, count) once, none shorter than grain but the
// last, on at most `threads` threads. Kernels may cut their work by `threads`, but never so that a result's
// bits depend on it.
struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  int64_t threads;
  void (*run)(int64_t count, int64_t grain, Body body, void* context);
};

}  // namespace sparseprune
