// Element types of the CUDA kernels. No torch, no CUDA.
#pragma once

namespace sparseprune::cuda {

// float16 and bfloat16 are accumulated in float32, the others in their own type.
enum class Dtype : int { kFloat16 = 0, kBFloat16 = 1, kFloat32 = 2, kFloat64 = 3 };

}  // namespace sparseprune::cuda
