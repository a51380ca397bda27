// Python's access to the emulated kernels. Addresses of tensors are passed as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "selftest.h"
#include "simt.h"
#include "sparseprune/cuda/mask_bits.h"
#include "sparseprune/cuda/masked_conv2d.h"
#include "sparseprune/cuda/masked_linear.h"
#include "sparseprune/cuda/packed_linear.h"
#include "sparseprune/cuda/topk_mask.h"

namespace {

using namespace sparseprune::cuda;
using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(cudaError_t error) {
  simt::raise_pending();
  if (error != cudaSuccess) throw std::runtime_error("the launch failed with error " + std::to_string(error));
}

using Shape = std::array<int64_t, 3>;
LinearShape linear_shape(const Shape& shape) { return {shape[0], shape[1], shape[2]}; }

using LinearFunction = cudaError_t (*)(const void*, const void*, const uint32_t*, void*, LinearShape, Dtype,
                                       cudaStream_t);
template <LinearFunction function>
void linear_grad(Address a, Address b, Address words, Address out, Shape shape, int dtype) {
  check(function(at<void>(a), at<void>(b), at<uint32_t>(words), at<void>(out), linear_shape(shape),
                 static_cast<Dtype>(dtype), nullptr));
}

using PackedFunction = cudaError_t (*)(const void*, const void*, const uint32_t*, void*, LinearShape, int64_t, Dtype,
                                       void*, cudaStream_t);
template <PackedFunction function>
void packed_grad(Address a, Address b, Address words, Address out, Address workspace, Shape shape, int dtype,
                 int64_t kept) {
  check(function(at<void>(a), at<void>(b), at<uint32_t>(words), at<void>(out), linear_shape(shape), kept,
                 static_cast<Dtype>(dtype), at<void>(workspace), nullptr));
}

// shape: the four 64-bit and then the twelve 32-bit members of Conv2dShape, in order.
Conv2dShape conv_shape(const std::array<int64_t, 16>& s) {
  const auto narrow = [&](int i) { return static_cast<int>(s[static_cast<size_t>(i)]); };
  return {s[0],      s[1],      s[2],       s[3],       narrow(4),  narrow(5),  narrow(6),  narrow(7),
          narrow(8), narrow(9), narrow(10), narrow(11), narrow(12), narrow(13), narrow(14), narrow(15)};
}

using ConvFunction = cudaError_t (*)(const void*, const void*, const uint32_t*, void*, const Conv2dShape&,
                                     Dtype, cudaStream_t);
template <ConvFunction function>
void conv_grad(Address a, Address b, Address words, Address out, std::array<int64_t, 16> shape, int dtype) {
  check(function(at<void>(a), at<void>(b), at<uint32_t>(words), at<void>(out), conv_shape(shape),
                 static_cast<Dtype>(dtype), nullptr));
}

// The members of TopkTensor in order.
using TensorRow = std::tuple<Address, Address, Address, Address, int64_t, int64_t, int, int>;

std::vector<TopkTensor> topk_tensors(const std::vector<TensorRow>& rows) {
  std::vector<TopkTensor> tensors;
  for (const auto& [scores, gradients, candidates, kept, height, width, dtype, formula] : rows) {
    tensors.push_back({at<void>(scores), at<void>(gradients), at<uint32_t>(candidates), at<uint32_t>(kept),
                       height, width, static_cast<Dtype>(dtype), static_cast<Formula>(formula)});
  }
  return tensors;
}

void topk(const std::vector<TensorRow>& rows, int64_t k, Address device_k, bool largest, Address status,
          Address threshold, Address workspace) {
  const auto tensors = topk_tensors(rows);
  check(topk_mask(tensors.data(), static_cast<int64_t>(tensors.size()), {k, at<int64_t>(device_k), largest},
                  {at<int64_t>(status), at<double>(threshold)}, at<void>(workspace), nullptr));
}

size_t topk_workspace(const std::vector<TensorRow>& rows) {
  const auto tensors = topk_tensors(rows);
  return topk_mask_workspace_size(tensors.data(), static_cast<int64_t>(tensors.size()));
}

}  // namespace

PYBIND11_MODULE(simt_kernels, m) {
  m.def("set_seed", &simt::set_seed);
  m.def("set_buffers", &simt::set_buffers);
  m.def("set_grids", &simt::set_grids);
  m.def("set_max_collected", &simt::set_max_collected);
  m.def("selftest", &simt::selftest);
  m.def("pack_mask", [](Address mask, Address words, int64_t rows, int64_t columns) {
    check(pack_mask(at<uint8_t>(mask), at<uint32_t>(words), rows, columns, nullptr));
  });
  m.def("unpack_mask", [](Address words, Address mask, int64_t rows, int64_t columns) {
    check(unpack_mask(at<uint32_t>(words), at<uint8_t>(mask), rows, columns, nullptr));
  });
  m.def("count_mask", [](Address words, Address counts, int64_t rows, int64_t row_words) {
    check(count_mask(at<uint32_t>(words), at<int64_t>(counts), rows, row_words, nullptr));
  });
  m.def("topk_mask", &topk);
  m.def("topk_workspace", &topk_workspace);
  m.def("masked_linear", [](Address x, Address weight, Address words, Address bias, Address y,
                            Shape shape, int dtype) {
    check(masked_linear(at<void>(x), at<void>(weight), at<uint32_t>(words), at<void>(bias), at<void>(y),
                        linear_shape(shape), static_cast<Dtype>(dtype), nullptr));
  });
  m.def("masked_linear_input_grad", &linear_grad<masked_linear_input_grad>);
  m.def("masked_linear_weight_grad", &linear_grad<masked_linear_weight_grad>);
  m.def("masked_conv2d", [](Address x, Address weight, Address words, Address bias, Address y,
                            std::array<int64_t, 16> shape, int dtype) {
    check(masked_conv2d(at<void>(x), at<void>(weight), at<uint32_t>(words), at<void>(bias), at<void>(y),
                        conv_shape(shape), static_cast<Dtype>(dtype), nullptr));
  });
  m.def("masked_conv2d_input_grad", &conv_grad<masked_conv2d_input_grad>);
  m.def("masked_conv2d_weight_grad", &conv_grad<masked_conv2d_weight_grad>);
  m.def("packed_linear_workspace", [](Shape shape, int) { return packed_linear_workspace_size(linear_shape(shape)); });
  m.def("packed_linear_input_grad_workspace", [](Shape shape, int dtype) {
    return packed_linear_input_grad_workspace_size(linear_shape(shape), static_cast<Dtype>(dtype));
  });
  m.def("packed_linear_values_grad_workspace",
        [](Shape shape, int) { return packed_linear_values_grad_workspace_size(linear_shape(shape)); });
  m.def("packed_linear", [](Address x, Address values, Address words, Address bias, Address y, Address workspace,
                            Shape shape, int dtype, int64_t kept) {
    check(packed_linear(at<void>(x), at<void>(values), at<uint32_t>(words), at<void>(bias), at<void>(y),
                        linear_shape(shape), kept, static_cast<Dtype>(dtype), at<void>(workspace), nullptr));
  });
  m.def("packed_linear_input_grad", &packed_grad<packed_linear_input_grad>);
  m.def("packed_linear_values_grad", &packed_grad<packed_linear_values_grad>);
}
