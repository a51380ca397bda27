// `sparseprune._C`: tells how the native parts were built and what they use here. Nothing needs it to run.
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <sstream>
#include <string>
#include <utility>

#include <sparseprune/isa.h>

#include "build_config.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::list split(const std::string& text) {
  py::list items;
  std::istringstream stream(text);
  for (std::string item; stream >> item;) items.append(item);
  return items;
}

py::list simd_levels_compiled() {
  py::list names;
  for (const auto isa : {sparseprune::Isa::portable, sparseprune::Isa::avx2, sparseprune::Isa::avx512}) {
    if (sparseprune::isa_compiled(isa)) names.append(sparseprune::isa_name(isa));
  }
  return names;
}

py::list cpu_features() {
  py::list names;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define SPARSEPRUNE_FEATURE(name) \
  if (__builtin_cpu_supports(name)) names.append(name)
  SPARSEPRUNE_FEATURE("popcnt");
  SPARSEPRUNE_FEATURE("avx");
  SPARSEPRUNE_FEATURE("bmi");
  SPARSEPRUNE_FEATURE("bmi2");
  SPARSEPRUNE_FEATURE("avx2");
  SPARSEPRUNE_FEATURE("fma");
  SPARSEPRUNE_FEATURE("avx512f");
  SPARSEPRUNE_FEATURE("avx512bw");
  SPARSEPRUNE_FEATURE("avx512dq");
  SPARSEPRUNE_FEATURE("avx512vl");
#undef SPARSEPRUNE_FEATURE
#endif
  return names;
}

py::dict build_info() {
  py::dict info;
  info["version"] = SPARSEPRUNE_VERSION;
  info["torch_version"] = SPARSEPRUNE_TORCH_VERSION;
  info["stable_abi_target"] = SPARSEPRUNE_STABLE_ABI_TARGET;
  info["compiler"] = compiler();
  info["cuda_version"] = SPARSEPRUNE_CUDA_VERSION;
  info["cuda_architectures"] = split(SPARSEPRUNE_CUDA_ARCHITECTURES);
  info["simd_levels"] = simd_levels_compiled();
  info["simd_level"] = sparseprune::isa_name(sparseprune::cpu_isa());
  info["cpu_features"] = cpu_features();
  info["threads"] = py::module_::import("torch").attr("get_num_threads")();
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "How sparseprune's native parts were built, and what they use on this machine.";
  module.def("build_info", &build_info,
             "Returns a dictionary: version, torch_version (built against), stable_abi_target, compiler, "
             "cuda_version "
             "and cuda_architectures (empty without CUDA), simd_levels (compiled), simd_level (in use; "
             "SPARSEPRUNE_CPU_ISA forces one), cpu_features, threads. Raises RuntimeError for a wrong "
             "SPARSEPRUNE_CPU_ISA.");
}
