// Masked linear layer: three uses of one tiled product; the mask is applied while the weight's tile is
// loaded, or, for the weight's gradient, while the result is written.
//
// Budget: 128 registers, 33280 bytes of shared memory, no spills.
#include "sparseprune/cuda/masked_linear.h"

#include "sparseprune/cuda/mask_bits.h"
#include "tile_gemm.cuh"

namespace sparseprune::cuda {
namespace {

template <Depth DepthOfA, Depth DepthOfB, class T>
__global__ void __launch_bounds__(kGemmThreads, kGemmBlocks)
    gemm_kernel(Matrix<T> a, Matrix<T> b, MatrixOut<T> out, int64_t depth) {
  for_each_tile(1, out.rows, out.columns, [&](int64_t, int64_t row0, int64_t column0) {
    gemm_tile<DepthOfA, DepthOfB, Acc<T>>(a, b, out, row0, column0, depth);
  });
}

template <Depth DepthOfA, Depth DepthOfB, class T>
cudaError_t gemm(Matrix<T> a, Matrix<T> b, MatrixOut<T> out, int64_t depth, cudaStream_t stream) {
  if (out.rows == 0 || out.columns == 0) return cudaSuccess;
  const dim3 grid = grid_for(tiles_of(out.rows) * tiles_of(out.columns));
  return launch(gemm_kernel<DepthOfA, DepthOfB, T>, grid, kGemmThreads, stream, a, b, out, depth);
}

template <class T>
Matrix<T> matrix(const void* data, int64_t rows, int64_t columns, const uint32_t* words = nullptr) {
  return {static_cast<const T*>(data), words, rows, columns, words_per_row(columns)};
}

template <class T>
MatrixOut<T> result(void* data, int64_t rows, int64_t columns, const void* bias, const uint32_t* words) {
  return {static_cast<T*>(data), static_cast<const T*>(bias), words, rows, columns, words_per_row(columns)};
}

}  // namespace

cudaError_t masked_linear(const void* x, const void* weight, const uint32_t* words, const void* bias, void* y,
                          LinearShape shape, Dtype dtype, cudaStream_t stream) {
  const int64_t batch = shape.batch, in = shape.in_features, out = shape.out_features;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return gemm<Depth::kColumns, Depth::kColumns>(matrix<T>(x, batch, in), matrix<T>(weight, out, in, words),
                                                  result<T>(y, batch, out, bias, nullptr), in, stream);
  });
}

cudaError_t masked_linear_input_grad(const void* grad, const void* weight, const uint32_t* words,
                                     void* input_grad, LinearShape shape, Dtype dtype, cudaStream_t stream) {
  const int64_t batch = shape.batch, in = shape.in_features, out = shape.out_features;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return gemm<Depth::kColumns, Depth::kRows>(matrix<T>(grad, batch, out), matrix<T>(weight, out, in, words),
                                               result<T>(input_grad, batch, in, nullptr, nullptr), out,
                                               stream);
  });
}

cudaError_t masked_linear_weight_grad(const void* grad, const void* x, const uint32_t* words,
                                      void* weight_grad, LinearShape shape, Dtype dtype,
                                      cudaStream_t stream) {
  const int64_t batch = shape.batch, in = shape.in_features, out = shape.out_features;
  return for_dtype(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return gemm<Depth::kRows, Depth::kRows>(matrix<T>(grad, batch, out), matrix<T>(x, batch, in),
                                            result<T>(weight_grad, out, in, nullptr, words), batch, stream);
  });
}

}  // namespace sparseprune::cuda
