// Linear layer on a CUDA device whose weight is its survivors and their mask, and its two gradients.
//
//   y = x W^T + b          dx = g W          dv[i] = sum_n g[n, row_i] x[n, column_i], i = 0 .. kept - 1
//
// x [batch, in], values [kept]: W's survivors row after row, words [out, words_per_row(in)] (see mask_bits.h), bias
// [out] or null, y and g [batch, out]. All but words are contiguous device arrays of one dtype. Nothing of the size of
// W is read or written but its bits. `kept` must be the number of bits set; otherwise results are unspecified, but
// nothing outside of the arrays is touched. The order of every sum is fixed: same inputs, same bits. Any size may be
// zero. The work is enqueued on `stream` and nothing is waited for. The result is the launch's error.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "sparseprune/cuda/dtype.h"
#include "sparseprune/cuda/masked_linear.h"

namespace sparseprune::cuda {

// Bytes of device memory each needs as workspace, aligned to 8 bytes; its content does not matter.
size_t packed_linear_workspace_size(LinearShape shape);
size_t packed_linear_input_grad_workspace_size(LinearShape shape, Dtype dtype);
size_t packed_linear_values_grad_workspace_size(LinearShape shape);

cudaError_t packed_linear(const void* x, const void* values, const uint32_t* words, const void* bias, void* y,
                          LinearShape shape, int64_t kept, Dtype dtype, void* workspace, cudaStream_t stream);

cudaError_t packed_linear_input_grad(const void* grad, const void* values, const uint32_t* words, void* input_grad,
                                     LinearShape shape, int64_t kept, Dtype dtype, void* workspace,
                                     cudaStream_t stream);

cudaError_t packed_linear_values_grad(const void* grad, const void* x, const uint32_t* words, void* values_grad,
                                      LinearShape shape, int64_t kept, Dtype dtype, void* workspace,
                                      cudaStream_t stream);

}  // namespace sparseprune::cuda
