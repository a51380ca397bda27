// What the CPU registrations share: torch's threads, argument checks with a sentence, allocation, dtype
// choice.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sparseprune/mask_bits.h>
#include <sparseprune/memory.h>
#include <sparseprune/parallel.h>

namespace sparseprune::torch_cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Parallel torch_threads() {
  return {static_cast<int64_t>(torch::stable::get_num_threads()),
          [](int64_t count, int64_t grain, Parallel::Body body, void* context) {
            STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain, body, context));
          }};
}

inline void check_layout(const Tensor& tensor, const char* name, int64_t dims) {
  STD_TORCH_CHECK(tensor.is_cpu(), "`", name, "` must be on the CPU for the CPU kernel, got another device");
  STD_TORCH_CHECK(tensor.dim() == dims, "`", name, "` must have ", dims, " dimensions, got ", tensor.dim());
  STD_TORCH_CHECK(tensor.is_contiguous(), "`", name, "` must be contiguous, got strides of another layout");
}

inline void check_words(const Tensor& words, const char* name, int64_t rows, int64_t cols) {
  check_layout(words, name, 2);
  STD_TORCH_CHECK(words.scalar_type() == ScalarType::Int, "`", name,
                  "` must be an int32 tensor, got another dtype");
  STD_TORCH_CHECK(words.size(0) == rows && words.size(1) == words_per_row(cols), "`", name, "` must be [",
                  rows, ", ", words_per_row(cols), "] for a mask of [", rows, ", ", cols, "], got [",
                  words.size(0), ", ", words.size(1), "]");
}

// The set bits of all words.
inline int64_t count_bits(const Tensor& words) {
  int64_t count = 0;
  with_isa([&](auto isa) {
    sparseprune::count_mask<decltype(isa)::value>(static_cast<const int32_t*>(words.const_data_ptr()), 1,
                                                  words.size(0) * words.size(1), &count, torch_threads());
  });
  return count;
}

inline void check_real(const Tensor& tensor, const char* name) {
  const auto type = tensor.scalar_type();
  STD_TORCH_CHECK(
      type != ScalarType::Half && type != ScalarType::BFloat16, "`", name,
      "` must be float32 or float64 for the CPU kernel, got a half type; convert it with .float()");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "`", name,
                  "` must be float32 or float64 for the CPU kernel, got another dtype");
}

inline void check_same_type(const Tensor& tensor, const char* name, const Tensor& other,
                            const char* other_name) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), "`", name, "` must have the dtype of `",
                  other_name, "`, got another dtype");
}

inline void check_size(const Tensor& tensor, const char* name, int64_t dim, int64_t expected) {
  STD_TORCH_CHECK(tensor.size(dim) == expected, "`", name, "` must have size ", expected, " in dimension ",
                  dim, ", got ", tensor.size(dim));
}

// Large results in huge pages: filling them costs less than the page faults of small ones.
inline Tensor empty(torch::headeronly::IntHeaderOnlyArrayRef sizes, ScalarType type) {
  Tensor tensor = torch::stable::empty(sizes, type);
  ask_for_huge_pages(tensor.mutable_data_ptr(), static_cast<size_t>(tensor.numel() * tensor.element_size()));
  return tensor;
}
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
  return empty(torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()), type);
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls f(float{}) or f(double{}) by the tensor's dtype, which check_real has admitted.
template <class F>
void with_real(const Tensor& tensor, F&& f) {
  if (tensor.scalar_type() == ScalarType::Float) {
    f(float{});
  } else {
    f(double{});
  }
}

}  // namespace sparseprune::torch_cpu
