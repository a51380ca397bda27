// Exact top k over a list of score arrays on a CUDA device, as packed masks.
//
// Exactly min(k, competing) bits are set: the largest competing scores over all tensors; ties (-0.0 equals
// +0.0) go to the lowest (tensor, flat index). A slot competes where its candidate bit is set, or everywhere
// without candidates; the score of another slot is never looked at. Integer atomics only: same inputs, same
// bits. status[0] = index of the first tensor with a NaN in a competing slot, or -1 (the words are then
// unspecified); status[1] = number of competing slots. Every word of every output is written. Nothing is
// waited for, also not between passes, and the table of tensors travels in kernel arguments, so the call can
// be captured in a graph.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "sparseprune/cuda/dtype.h"

namespace sparseprune::cuda {

// Device pointers of one tensor: scores [rows, columns], candidates (or null) and kept [rows,
// words_per_row(columns)].
struct TopkTensor {
  const void* scores;
  const uint32_t* candidates;
  uint32_t* kept;
  int64_t rows, columns;
};

// Bytes of device memory topk_mask needs as workspace, aligned to 8 bytes; its content does not matter.
size_t topk_mask_workspace_size(const TopkTensor* tensors, int64_t count);

// `tensors` is a host array; dtype is kFloat32 or kFloat64; k >= 0; status is int64 [2] on the device.
cudaError_t topk_mask(const TopkTensor* tensors, int64_t count, Dtype dtype, int64_t k, int64_t* status,
                      void* workspace, cudaStream_t stream);

}  // namespace sparseprune::cuda
