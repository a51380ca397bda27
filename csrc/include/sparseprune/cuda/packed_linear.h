// Linear layer on a CUDA device whose weight is its survivors and their mask: y = x W^T + b, for small batches.
//
// x [batch, in], values: W's survivors row after row, words [out, words_per_row(in)] (see mask_bits.h), bias [out] or
// null, y [batch, out]. All but words are contiguous device arrays of one dtype. The order of every sum is fixed: same
// inputs, same bits. Any size may be zero. The work is enqueued on `stream` and nothing is waited for. The result is
// the launch's error.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "sparseprune/cuda/dtype.h"
#include "sparseprune/cuda/masked_linear.h"

namespace sparseprune::cuda {

// Bytes of device memory packed_linear needs as workspace, aligned to 8 bytes; its content does not matter.
size_t packed_linear_workspace_size(LinearShape shape);

cudaError_t packed_linear(const void* x, const void* values, const uint32_t* words, const void* bias, void* y,
                          LinearShape shape, Dtype dtype, void* workspace, cudaStream_t stream);

}  // namespace sparseprune::cuda
