#include <sparseprune/sparse_columns.h>

#include <optional>
#include <vector>

#include "cpu_common.h"

namespace sparseprune::torch_cpu {
namespace {

int64_t max_of(int64_t a, int64_t b) { return a < b ? b : a; }

void check_type(const Tensor& tensor, const char* name, ScalarType type, const char* wanted) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, "`", name, "` must be an ", wanted, " tensor, got another dtype");
}

void check_columns(const Tensor& starts, const Tensor& rows, const Tensor& values, const Tensor& cursors) {
  check_layout(starts, "starts", 1);
  check_layout(rows, "rows", 1);
  check_layout(values, "values", 1);
  check_layout(cursors, "cursors", 2);
  check_type(starts, "starts", ScalarType::Int, "int32");
  check_type(rows, "rows", ScalarType::Short, "int16");
  check_type(cursors, "cursors", ScalarType::Int, "int32");
  check_real(values, "values");
  check_size(cursors, "cursors", 0, kColumnBlocks);
  STD_TORCH_CHECK(starts.size(0) > 0 && (starts.size(0) - 1) % max_of(band_count(cursors.size(1)), 1) == 0,
                  "`starts` must have an entry for each column of each band and one more, got ", starts.size(0));
  const int64_t entries = data<int32_t>(starts)[starts.size(0) - 1];
  check_size(rows, "rows", 0, entries);
  check_size(values, "values", 0, entries);
}

int64_t columns_in(const Tensor& starts, const Tensor& cursors) {
  return (starts.size(0) - 1) / max_of(band_count(cursors.size(1)), 1);
}

template <class T>
SparseColumns<T> columns_of(const Tensor& starts, const Tensor& rows, const Tensor& values, const Tensor& cursors) {
  return {cursors.size(1), columns_in(starts, cursors), data<int32_t>(starts),
          static_cast<const uint16_t*>(rows.const_data_ptr()), data<T>(values), data<int32_t>(cursors)};
}

struct Made {
  Tensor starts, rows, values, cursors;
  Made(int64_t cols, int64_t entries, int64_t height, ScalarType type)
      : starts(empty({band_count(height) * cols + 1}, ScalarType::Int)),
        rows(empty({entries}, ScalarType::Short)),
        values(empty({entries}, type)),
        cursors(empty({kColumnBlocks, height}, ScalarType::Int)) {}
  template <class T>
  NewColumns<T> out() {
    return {mutable_data<int32_t>(starts), static_cast<uint16_t*>(rows.mutable_data_ptr()), mutable_data<T>(values),
            mutable_data<int32_t>(cursors)};
  }
  std::vector<Tensor> list() { return {starts, rows, values, cursors}; }
};

std::vector<Tensor> pack_columns(const Tensor& weight, const Tensor& words, int64_t groups, int64_t entries) {
  check_layout(weight, "weight", 2);
  check_real(weight, "weight");
  const int64_t height = weight.size(0), row_cols = weight.size(1);
  check_words(words, "words", height, row_cols);
  STD_TORCH_CHECK(height <= 65536, "`weight` must have at most 65,536 rows, got ", height);
  STD_TORCH_CHECK(groups > 0 && height % groups == 0, "`groups` must divide the ", height, " rows, got ", groups);
  STD_TORCH_CHECK(height * row_cols < (int64_t{1} << 31), "`weight` must have fewer than 2^31 elements, got ",
                  height * row_cols);
  const int64_t counted = count_bits(words);
  STD_TORCH_CHECK(entries == counted, "`entries` must be the ", counted, " set bits of words, got ", entries);
  Made made(groups * row_cols, entries, height, weight.scalar_type());
  with_real(weight, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::pack_columns<decltype(isa)::value>(data<T>(weight), data<int32_t>(words), height, row_cols, groups,
                                                      made.out<T>(), torch_threads());
    });
  });
  return made.list();
}

std::vector<Tensor> narrow_columns(const Tensor& starts, const Tensor& rows, const Tensor& values,
                                   const Tensor& cursors, const Tensor& kept, int64_t entries) {
  check_columns(starts, rows, values, cursors);
  check_words(kept, "kept", 1, rows.size(0));
  const int64_t counted = count_bits(kept);
  STD_TORCH_CHECK(entries == counted, "`entries` must be the ", counted, " set bits of kept, got ", entries);
  Made made(columns_in(starts, cursors), entries, cursors.size(1), values.scalar_type());
  with_real(values, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::narrow_columns<decltype(isa)::value>(columns_of<T>(starts, rows, values, cursors),
                                                        data<int32_t>(kept), made.out<T>(), torch_threads());
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

Tensor columns_product(const Tensor& starts, const Tensor& rows, const Tensor& values, const Tensor& cursors,
                       const Tensor& x, std::optional<Tensor> scale) {
  check_columns(starts, rows, values, cursors);
  check_layout(x, "x", 2);
  const int64_t height = cursors.size(1), width = x.size(1);
  check_activations(x, "x", columns_in(starts, cursors), width, values);
  check_scale(scale, height, values);
  Tensor y = empty({height, width}, x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::columns_product<decltype(isa)::value>(columns_of<T>(starts, rows, values, cursors), data<T>(x),
                                                         width, scale ? data<T>(*scale) : static_cast<const T*>(nullptr),
                                                         mutable_data<T>(y), torch_threads());
    });
  });
  return y;
}

// The gradient of x, empty unless it is wanted, and the scores.
std::vector<Tensor> columns_gradients(const Tensor& starts, const Tensor& rows, const Tensor& values,
                                      const Tensor& cursors, const Tensor& grad, const Tensor& x,
                                      std::optional<Tensor> scale, bool input_grad) {
  check_columns(starts, rows, values, cursors);
  check_layout(x, "x", 2);
  const int64_t height = cursors.size(1), cols = columns_in(starts, cursors), width = x.size(1);
  check_activations(x, "x", cols, width, values);
  check_activations(grad, "grad", height, width, values);
  check_scale(scale, height, values);
  Tensor x_grad = empty({input_grad ? cols : 0, width}, x.scalar_type());
  Tensor scores = empty({rows.size(0)}, x.scalar_type());
  with_real(x, [&](auto zero) {
    using T = decltype(zero);
    with_isa([&](auto isa) {
      sparseprune::columns_gradients<decltype(isa)::value>(
          columns_of<T>(starts, rows, values, cursors), data<T>(grad), data<T>(x), width,
          scale ? data<T>(*scale) : static_cast<const T*>(nullptr),
          input_grad ? mutable_data<T>(x_grad) : static_cast<T*>(nullptr), mutable_data<T>(scores), torch_threads());
    });
  });
  return {x_grad, scores};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune_native, CPU, m) {
  m.impl("pack_columns", TORCH_BOX(&pack_columns));
  m.impl("narrow_columns", TORCH_BOX(&narrow_columns));
  m.impl("columns_product", TORCH_BOX(&columns_product));
  m.impl("columns_gradients", TORCH_BOX(&columns_gradients));
}

}  // namespace sparseprune::torch_cpu
