#include <sparseprune/sparse_rows.h>

#include <optional>
#include <vector>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

void check_type(const Tensor& tensor, const char* name, ScalarType type, const char* wanted) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, "`", name, "` must be an ", wanted, " tensor, got another dtype");
}

// The sizes that the tensors alone do not say.
struct Shape {
  int64_t height, row_cols, groups;
};

void check_rows(const Tensor& starts, const Tensor& columns, const Tensor& values, const Shape& shape) {
  check_layout(starts, "starts", 1);
  check_layout(columns, "columns", 1);
  check_layout(values, "values", 1);
  check_type(starts, "starts", ScalarType::Int, "int32");
  check_type(columns, "columns", ScalarType::Short, "int16");
  check_real(values, "values");
  STD_TORCH_CHECK(shape.height >= 0 && shape.row_cols >= 0 && shape.groups > 0 && shape.height % shape.groups == 0,
                  "`groups` must divide the ", shape.height, " rows, got ", shape.groups);
  const int64_t entries = values.size(0);
  check_size(columns, "columns", 0, entries);
  check_size(starts, "starts", 0, shape.height * block_count(shape.height, shape.row_cols, entries) + 1);
  STD_TORCH_CHECK(data<int32_t>(starts)[starts.size(0) - 1] == entries, "`starts` must end with the ", entries,
                  " values, got ", data<int32_t>(starts)[starts.size(0) - 1]);
}

template <class T>
SparseRows<T> rows_of(const Tensor& starts, const Tensor& columns, const Tensor& values, const Shape& shape) {
  return {shape.height,
          shape.row_cols,
          shape.groups,
          block_count(shape.height, shape.row_cols, values.size(0)),
          data<int32_t>(starts),
          static_cast<const uint16_t*>(columns.const_data_ptr()),
          data<T>(values)};
}

struct Made {
  int64_t blocks;
  Tensor starts, columns, values;
  Made(int64_t height, int64_t row_cols, int64_t entries, ScalarType type)
      : blocks(block_count(height, row_cols, entries)),
        starts(empty({height * blocks + 1}, ScalarType::Int)),
        columns(empty({entries}, ScalarType::Short)),
        values(empty({entries}, type)) {}
  template <class T>
  NewRows<T> out() {
    return {blocks, mutable_data<int32_t>(starts), static_cast<uint16_t*>(columns.mutable_data_ptr()),
            mutable_data<T>(values)};
  }
  std::vector<Tensor> list() { return {starts, columns, values}; }
};

std::vector<Tensor> pack_rows(const Tensor& weight, const Tensor& words, int64_t entries) {
  check_layout(weight, "weight", 2);
  check_real(weight, "weight");
  const int64_t height = weight.size(0), row_cols = weight.size(1);
  check_words(words, "words", height, row_cols);
  STD_TORCH_CHECK(row_cols <= kMostRowColumns, "`weight` must have at most 65,536 columns, got ", row_cols);
  STD_TORCH_CHECK(height * row_cols < (int64_t{1} << 31), "`weight` must have fewer than 2^31 elements, got ",
                  height * row_cols);
  const int64_t counted = count_bits(words);
  STD_TORCH_CHECK(entries == counted, "`entries` must be the ", counted, " set bits of words, got ", entries);
  Made made(height, row_cols, entries, weight.scalar_type());
  with_real(weight, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::pack_rows<decltype(isa)::value>(data<T>(weight), data<int32_t>(words), height, row_cols,
                                                   made.out<T>(), torch_threads());
    });
  });
  return made.list();
}

std::vector<Tensor> narrow_rows(const Tensor& starts, const Tensor& columns, const Tensor& values, int64_t height,
                                int64_t row_cols, const Tensor& kept, int64_t entries) {
  const Shape shape{height, row_cols, 1};
  check_rows(starts, columns, values, shape);
  check_words(kept, "kept", 1, values.size(0));
  const int64_t counted = count_bits(kept);
  STD_TORCH_CHECK(entries == counted, "`entries` must be the ", counted, " set bits of kept, got ", entries);
  Made made(height, row_cols, entries, values.scalar_type());
  with_real(values, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::narrow_rows<decltype(isa)::value>(rows_of<T>(starts, columns, values, shape), data<int32_t>(kept),
                                                     made.out<T>(), torch_threads());
    });
  });
  return made.list();
}

void check_activations(const Tensor& tensor, const char* name, int64_t channels, int64_t width, const Tensor& values) {
  check_layout(tensor, name, 2);
  check_same_type(tensor, name, values, "values");
  check_size(tensor, name, 0, channels);
  check_size(tensor, name, 1, width);
  STD_TORCH_CHECK(width == 1 || width == 4 || width % 8 == 0, "`", name, "` must have 1, 4 or a multiple of 8 columns, got ", width);
}

void check_scale(const std::optional<Tensor>& scale, int64_t height, const Tensor& values) {
  if (!scale) return;
  check_layout(*scale, "scale", 1);
  check_size(*scale, "scale", 0, height);
  check_same_type(*scale, "scale", values, "values");
}

Tensor rows_product(const Tensor& starts, const Tensor& columns, const Tensor& values, int64_t height,
                    int64_t row_cols, int64_t groups, const Tensor& x, std::optional<Tensor> scale) {
  const Shape shape{height, row_cols, groups};
  check_rows(starts, columns, values, shape);
  check_layout(x, "x", 2);
  const int64_t width = x.size(1);
  check_activations(x, "x", groups * row_cols, width, values);
  check_scale(scale, height, values);
  Tensor y = empty({height, width}, x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::rows_product<decltype(isa)::value>(
          rows_of<T>(starts, columns, values, shape), data<T>(x), width,
          scale ? data<T>(*scale) : static_cast<const T*>(nullptr), mutable_data<T>(y), torch_threads());
    });
  });
  return y;
}

// The gradient of x, empty unless it is wanted, the scores, and the largest gradient of a weight.
std::vector<Tensor> rows_gradients(const Tensor& starts, const Tensor& columns, const Tensor& values, int64_t height,
                                   int64_t row_cols, int64_t groups, const Tensor& grad, const Tensor& x,
                                   std::optional<Tensor> scale, bool input_grad) {
  const Shape shape{height, row_cols, groups};
  check_rows(starts, columns, values, shape);
  check_layout(x, "x", 2);
  const int64_t width = x.size(1);
  check_activations(x, "x", groups * row_cols, width, values);
  check_activations(grad, "grad", height, width, values);
  check_scale(scale, height, values);
  Tensor x_grad = empty({input_grad ? groups * row_cols : 0, width}, x.scalar_type());
  Tensor scores = empty({values.size(0)}, x.scalar_type()), peak = empty({1}, x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      *mutable_data<T>(peak) = sparseprune::rows_gradients<decltype(isa)::value>(
          rows_of<T>(starts, columns, values, shape), data<T>(grad), data<T>(x), width,
          scale ? data<T>(*scale) : static_cast<const T*>(nullptr),
          input_grad ? mutable_data<T>(x_grad) : static_cast<T*>(nullptr), mutable_data<T>(scores), torch_threads());
    });
  });
  return {x_grad, scores, peak};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("pack_rows", TORCH_BOX(&pack_rows));
  m.impl("narrow_rows", TORCH_BOX(&narrow_rows));
  m.impl("rows_product", TORCH_BOX(&rows_product));
  m.impl("rows_gradients", TORCH_BOX(&rows_gradients));
}

}  // namespace sparseprune::torch_cpu
