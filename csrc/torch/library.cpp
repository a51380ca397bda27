// The schemas of every native op, in one place. The CPU and CUDA libraries register kernels for their
// dispatch keys.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sparseprune_native, m) {
  m.def("pack_mask(Tensor mask) -> Tensor");
  m.def("unpack_mask(Tensor words, int cols) -> Tensor");
  m.def("count_mask(Tensor words) -> Tensor");
  m.def(
      "topk_mask(Tensor[] scores, Tensor[] gradients, Tensor[] candidates, int[] formulas, int k, Tensor? k_tensor, "
      "bool largest) -> Tensor[]");
  m.def(
      "group_topk_mask(Tensor scores, Tensor? gradients, int formula, int k, int group, bool largest) -> Tensor[]");
  m.def(
      "digit_histogram(Tensor scores, Tensor? candidates, bool wide, bool largest, bool abs, int low, int shift, "
      "int width) -> Tensor");
  m.def(
      "threshold_mask(Tensor scores, Tensor? candidates, bool wide, bool largest, bool abs, int threshold, "
      "int quota) -> Tensor[]");
  m.def("masked_linear(Tensor x, Tensor weight, Tensor words, Tensor? bias) -> Tensor");
  m.def("masked_linear_input_grad(Tensor grad, Tensor weight, Tensor words) -> Tensor");
  m.def("masked_linear_weight_grad(Tensor grad, Tensor x, Tensor words) -> Tensor");
  m.def(
      "masked_conv2d(Tensor x, Tensor weight, Tensor words, Tensor? bias, int[] stride, int[] padding, "
      "int[] dilation, int groups) -> Tensor");
  m.def(
      "masked_conv2d_input_grad(Tensor grad, Tensor weight, Tensor words, int[] input_size, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "masked_conv2d_weight_grad(Tensor grad, Tensor x, Tensor words, int[] weight_size, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> Tensor");
  m.def("packed_linear(Tensor x, Tensor values, Tensor words, Tensor? bias) -> Tensor");
  m.def("packed_linear_input_grad(Tensor grad, Tensor values, Tensor words, int columns) -> Tensor");
  m.def("packed_linear_values_grad(Tensor grad, Tensor x, Tensor words, int kept) -> Tensor");
  m.def(
      "packed_conv2d(Tensor x, Tensor values, Tensor words, Tensor? bias, int[] kernel, int[] stride, int[] padding, "
      "int[] dilation, int groups) -> Tensor");
  m.def(
      "packed_conv2d_input_grad(Tensor grad, Tensor values, Tensor words, int[] input_size, int[] kernel, "
      "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "packed_conv2d_values_grad(Tensor grad, Tensor x, Tensor words, int kept, int[] kernel, int[] stride, "
      "int[] padding, int[] dilation, int groups) -> Tensor");
  m.def("pack_rows(Tensor weight, Tensor words, int entries) -> Tensor[]");
  m.def(
      "narrow_rows(Tensor starts, Tensor columns, Tensor values, int height, int row_cols, Tensor kept, int entries) "
      "-> Tensor[]");
  m.def(
      "rows_product(Tensor starts, Tensor columns, Tensor values, int height, int row_cols, int groups, Tensor x, "
      "Tensor? scale) -> Tensor");
  m.def(
      "rows_gradients(Tensor starts, Tensor columns, Tensor values, int height, int row_cols, int groups, Tensor grad, "
      "Tensor x, Tensor? scale, bool input_grad) -> Tensor[]");
  m.def("dense_scores(Tensor weight, Tensor grad, Tensor x, Tensor(a!) scores, bool input_grad) -> Tensor[]");
  m.def("map_positions(Tensor x, Tensor starts, Tensor sources, Tensor factors) -> Tensor");
  m.def("max_positions(Tensor x, Tensor windows, int width) -> Tensor[]");
  m.def("max_positions_grad(Tensor grad, Tensor winners, int width) -> Tensor");
  m.def("spread_bits(Tensor words, Tensor kept) -> Tensor");
  m.def("zero_pruned_(Tensor(a!) weight, Tensor words) -> ()");
  m.def("is_zero_outside(Tensor weight, Tensor words) -> bool");
  m.def("collect_values(Tensor weight, Tensor words) -> Tensor");
  m.def("spread_values_(Tensor(a!) weight, Tensor words, Tensor values) -> ()");
  m.def("collect_bits(Tensor words, Tensor part, int count) -> Tensor[]");
}
