// The instruction set levels of the CPU kernels, and the run-time choice among them.
#pragma once

#include <type_traits>

namespace sparseprune {

enum class Isa { portable, avx2, avx512 };

// The level to run now: the best that was compiled and that this CPU has, or the one named by the environment
// variable SPARSEPRUNE_CPU_ISA (portable, avx2, avx512), which is read at every call. Throws
// std::runtime_error with a sentence when the name is unknown or the level is not to be had.
Isa cpu_isa();

const char* isa_name(Isa isa);
bool isa_compiled(Isa isa);
bool isa_supported(Isa isa);

// Calls f with std::integral_constant<Isa, cpu_isa()>. The kernels are templates over Isa, instantiated once
// each in a translation unit compiled for that level, so that no code of one level can be linked into
// another's path.
template <class F>
void with_isa(F&& f) {
  switch (cpu_isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return f(std::integral_constant<Isa, Isa::avx512>{});
    case Isa::avx2:
      return f(std::integral_constant<Isa, Isa::avx2>{});
#endif
    default:
      return f(std::integral_constant<Isa, Isa::portable>{});
  }
}

}  // namespace sparseprune
