#include <sparseprune/isa.h>

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sparseprune {

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

bool isa_compiled([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  return true;
#else
  return isa == Isa::portable;
#endif
}

bool isa_supported(Isa isa) {
  if (isa == Isa::portable) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

Isa cpu_isa() {
  static const Isa best = isa_supported(Isa::avx512) ? Isa::avx512
                          : isa_supported(Isa::avx2) ? Isa::avx2
                                                     : Isa::portable;
  const char* forced = std::getenv("SPARSEPRUNE_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return best;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(forced, isa_name(isa)) != 0) continue;
    if (isa <= best) return isa;
    throw std::runtime_error(
        std::string("SPARSEPRUNE_CPU_ISA must name a level that this CPU has (the best is ") +
        isa_name(best) + "), got " + forced);
  }
  throw std::runtime_error(std::string("SPARSEPRUNE_CPU_ISA must be portable, avx2 or avx512, got ") +
                           forced);
}

}  // namespace sparseprune
