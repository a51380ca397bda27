// Exact top k over a list of score arrays on a CUDA device, as packed masks.
//
// Exactly min(k, competing) bits are set: the largest (or smallest) competing scores over all tensors; ties
// (-0.0 equals +0.0) go to the lowest (tensor, flat index). A score is a stored weight or a formula of it and
// its gradient, evaluated where it is read: in double if any tensor is float64, else in float. A slot
// competes where its candidate bit is set, or everywhere without candidates; the score of another slot is
// never looked at. Integer atomics only: same inputs, same bits. Nothing is waited for, also not between
// passes, and the table of tensors travels in kernel arguments, so the call can be captured in a graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "sparseprune/cuda/dtype.h"

namespace sparseprune::cuda {

enum class Formula : int { kW = 0, kAbsW = 1, kWG = 2, kAbsWG = 3, kAbsWTimesG = 4 };  // .., |w*g|, |w|*g

constexpr bool has_gradient(Formula formula) { return formula >= Formula::kWG; }

// Device pointers of one tensor: scores and gradients [rows, columns], gradients where the formula has one;
// candidates (or null) and kept [rows, words_per_row(columns)].
struct TopkTensor {
  const void* scores;
  const void* gradients;
  const uint32_t* candidates;
  uint32_t* kept;
  int64_t rows, columns;
  Dtype dtype;
  Formula formula;
};

// How many to keep: *device_k, or k where that is null; none if negative, all that compete if more than
// those.
struct TopkRequest {
  int64_t k;
  const int64_t* device_k;
  bool largest;
};

// On the device. status[0] is the first tensor with a NaN in a competing slot, or -1 (with a NaN everything
// else is unspecified, but the threshold is NaN); status[1] the number of competing slots; status[2 + i] the
// bits set in tensor i. threshold is the last score that is kept, NaN where none is.
struct TopkResult {
  int64_t* status;  // [2 + count]
  double* threshold;
};

// Bytes of device memory topk_mask needs as workspace, aligned to 8 bytes; its content does not matter. At
// most 3.1 MB and 72 bytes a tensor, whatever the size of the tensors.
size_t topk_mask_workspace_size(const TopkTensor* tensors, int64_t count);

// `tensors` is a host array. Every word of every `kept` is written.
cudaError_t topk_mask(const TopkTensor* tensors, int64_t count, TopkRequest request, TopkResult result,
                      void* workspace, cudaStream_t stream);

}  // namespace sparseprune::cuda
