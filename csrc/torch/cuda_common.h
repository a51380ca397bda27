// What the CUDA registrations share: the current stream, argument checks with a sentence, allocation, dtypes.
#pragma once

#include <dlfcn.h>

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "sparseprune/cuda/dtype.h"
#include "sparseprune/cuda/mask_bits.h"

namespace sparseprune::torch_cuda {

using sparseprune::cuda::Dtype;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// torch's current stream of a device. The function is looked up in the torch that runs instead of being
// linked, so that this library loads with a torch without CUDA as well. It lies in libtorch_cuda.so, which is
// loaded whenever there is a CUDA tensor.
inline cudaStream_t current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream")
                                              : nullptr);
  }();
  STD_TORCH_CHECK(
      function != nullptr,
      "the running torch must have CUDA and aoti_torch_get_current_cuda_stream (2.10 or later), got one "
      "without it");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Makes a tensor's device current as long as it lives, and knows that device's current stream.
class Launcher {
 public:
  explicit Launcher(const Tensor& tensor)
      : guard_(tensor.get_device_index()), stream_(current_stream(tensor.get_device_index())) {}

  cudaStream_t stream() const { return stream_; }

  static void check(cudaError_t error, const char* op) {
    STD_TORCH_CHECK(error == cudaSuccess, op, ": the CUDA launch failed: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

// A contiguous CUDA tensor, and on the device of `first`.
inline void check_layout(const Tensor& tensor, const char* name, int64_t dims, const Tensor& first) {
  STD_TORCH_CHECK(tensor.is_cuda(), "`", name,
                  "` must be on a CUDA device for the CUDA kernel, got another device");
  STD_TORCH_CHECK(tensor.get_device_index() == first.get_device_index(), "`", name,
                  "` must be on cuda:", first.get_device_index(),
                  " as the first tensor is, got cuda:", tensor.get_device_index());
  STD_TORCH_CHECK(tensor.dim() == dims, "`", name, "` must have ", dims, " dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous, got strides of another layout");
}

inline void check_words(const Tensor& words, const char* name, int64_t rows, int64_t columns,
                        const Tensor& first) {
  check_layout(words, name, 2, first);
  const int64_t row_words = cuda::words_per_row(columns);
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int, "`", name,
                  "` must be an int32 tensor, got another dtype");
  STD_TORCH_CHECK(words.size(0) == rows && words.size(1) == row_words, "`", name, "` must be [", rows, ", ",
                  row_words, "] for a mask of [", rows, ", ", columns, "], got [", words.size(0), ", ",
                  words.size(1), "]");
}

inline void check_same_type(const Tensor& tensor, const char* name, const Tensor& first) {
  STD_TORCH_CHECK(tensor.scalar_type() == first.scalar_type(), "`", name,
                  "` must have the dtype of the first tensor, got another one");
}

inline void check_size(const Tensor& tensor, const char* name, int64_t dim, int64_t expected) {
  STD_TORCH_CHECK(tensor.size(dim) == expected, "`", name, "` must have size ", expected, " in dimension ",
                  dim, ", got ", tensor.size(dim));
}

inline void check_matrix(const Tensor& matrix, const char* name, int64_t rows, int64_t columns, const Tensor& first) {
  check_layout(matrix, name, 2, first);
  check_same_type(matrix, name, first);
  check_size(matrix, name, 0, rows);
  check_size(matrix, name, 1, columns);
}

inline Dtype dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    default:
      STD_TORCH_CHECK(false, "`", name, "` must be float16, bfloat16, float32 or float64, got another dtype");
  }
}

// An uninitialised tensor on the device of `like`.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}

inline const uint32_t* words_data(const Tensor& words) {
  return static_cast<const uint32_t*>(words.const_data_ptr());
}

// Null for a missing bias.
inline const void* bias_data(const std::optional<Tensor>& bias, const Tensor& first, int64_t size) {
  if (!bias) return nullptr;
  check_layout(*bias, "bias", 1, first);
  check_same_type(*bias, "bias", first);
  check_size(*bias, "bias", 0, size);
  return bias->const_data_ptr();
}

}  // namespace sparseprune::torch_cuda
