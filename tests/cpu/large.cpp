// The CPU kernels on arrays of more than 2^31 elements that are reserved, not allocated: pages that nobody
// touches do not exist. Of every loop that threads would share only the last range runs, the one with the
// largest indices, and what it wrote is compared with plain sums.
//
//     large [how the names of the cases begin]
//
// Each array lies between two regions that cannot be touched, wide enough for any index of 32 bits that has
// wrapped around, so that most wrong addresses end the program at once.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>

#include <sparseprune/mask_bits.h>
#include <sparseprune/masked_conv2d.h>
#include <sparseprune/masked_linear.h>

namespace sparseprune {

namespace {

constexpr size_t kGuard = size_t{1} << 35;  // 2^32 elements of 8 bytes

}  // namespace

// The kernels' own memory comes from here, too: zeros, where the loops that do not run would have written.
void* allocate_scratch(size_t bytes) {
  const size_t page = 4096, size = (bytes / page + 1) * page;
  void* all = mmap(nullptr, 2 * kGuard + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED) std::abort();
  char* begin = static_cast<char*>(all) + kGuard;
  if (mprotect(begin, size, PROT_READ | PROT_WRITE) != 0) std::abort();
  // The last element ends, but for its alignment, where the second guard begins.
  return begin + (size - bytes) / 64 * 64;
}
void free_scratch(void*) {}  // the program ends soon, and what was not touched costs nothing

}  // namespace sparseprune

namespace {

using namespace sparseprune;
constexpr Isa kIsa = Isa::SPARSEPRUNE_ISA;
constexpr int64_t kBig = int64_t{1} << 31;

constexpr int64_t kFilled = 4;   // rows at the end of a matrix that are not zero: one panel's, however narrow
constexpr int64_t kColumns = 8;  // of those rows, at their end
constexpr int64_t kChecked = 3;  // rows and columns at the end of a result

// So many threads that a thread's part of any loop is small, and at least a few items: a row of blocks of the
// last images, of which the very last may be empty.
void run_last(int64_t count, int64_t grain, Parallel::Body body, void* context) {
  body(std::max(int64_t{0}, count - std::max(grain, int64_t{8})), count, context);
}
const Parallel kLast = {int64_t{1} << 20, run_last};

template <class T>
T* reserve(int64_t count) {
  return static_cast<T*>(allocate_scratch(static_cast<size_t>(count) * sizeof(T)));
}

float value_at(int64_t i) { return static_cast<float>((i * 2654435761 >> 7) % 2003) / 1000 - 1; }
bool kept_at(int64_t row, int64_t col) { return (row + col) % 3 == 0; }

bool expect(double actual, double expected) {
  const bool same = std::abs(actual - expected) <= 1e-4;
  if (!same) std::fprintf(stderr, "FAILED: got %g, expected %g\n", actual, expected);
  return same;
}

// A matrix of which only the last rows and columns are looked at.
struct Corner {
  Corner(int64_t rows, int64_t cols)
      : rows(rows),
        cols(cols),
        first_row(std::max(int64_t{0}, rows - kFilled)),
        first_col(std::max(int64_t{0}, cols - kColumns)),
        values(reserve<float>(rows * cols)) {}

  float& at(int64_t row, int64_t col) const { return values[row * cols + col]; }

  void fill() const {
    for (int64_t row = first_row; row < rows; ++row) {
      for (int64_t col = first_col; col < cols; ++col) at(row, col) = value_at(row * 31 + col);
    }
  }

  int32_t* words() const {
    int32_t* words = reserve<int32_t>(rows * words_per_row(cols));
    for (int64_t row = first_row; row < rows; ++row) {
      for (int64_t col = first_col; col < cols; ++col) {
        const uint32_t bit = kept_at(row, col) ? uint32_t{1} << (col % 32) : 0;
        words[row * words_per_row(cols) + col / 32] |= static_cast<int32_t>(bit);
      }
    }
    return words;
  }

  template <class Expected>
  bool is(const Expected& expected) const {
    bool good = true;
    for (int64_t row = std::max(int64_t{0}, rows - kChecked); row < rows; ++row) {
      for (int64_t col = std::max(int64_t{0}, cols - kChecked); col < cols; ++col) {
        good &= expect(at(row, col), expected(row, col));
      }
    }
    return good;
  }

  int64_t rows, cols, first_row, first_col;
  float* values;
};

Weight<const float> dense(const Corner& weight, const int32_t* words) { return {weight.values, words, nullptr}; }

struct Linear {
  explicit Linear(const LinearSize& size)
      : size(size), x(size.batch, size.in), weight(size.out, size.in), grad(size.batch, size.out) {
    for (const Corner* corner : {&x, &weight, &grad}) corner->fill();
    words = weight.words();
  }

  // So many kept slots, of weights that are zero, that kernels read whole vectors.
  void keep_first_rows() const {
    const int64_t count = (size.out / 16 + 1) * words_per_row(size.in);
    std::memset(words, 0xff, static_cast<size_t>(count) * sizeof(int32_t));
  }

  bool forward() const {
    const Corner y(size.batch, size.out);
    const float* no_bias = nullptr;
    masked_linear<kIsa>(x.values, dense(weight, words), no_bias, y.values, size, kLast);
    return y.is([&](int64_t n, int64_t row) {
      double sum = 0;
      for (int64_t col = weight.first_col; col < size.in; ++col) {
        if (kept_at(row, col)) sum += double{x.at(n, col)} * weight.at(row, col);
      }
      return sum;
    });
  }

  bool input_grad() const {
    const Corner dx(size.batch, size.in);
    masked_linear_input_grad<kIsa>(grad.values, dense(weight, words), dx.values, size, kLast);
    return dx.is([&](int64_t n, int64_t col) {
      double sum = 0;
      for (int64_t row = weight.first_row; row < size.out; ++row) {
        if (kept_at(row, col)) sum += double{grad.at(n, row)} * weight.at(row, col);
      }
      return sum;
    });
  }

  bool weight_grad() const {
    const Corner dw(size.out, size.in);
    masked_linear_weight_grad<kIsa>(grad.values, x.values, Weight<float>{dw.values, words, nullptr}, size, kLast);
    return dw.is([&](int64_t row, int64_t col) {
      double sum = 0;
      for (int64_t n = x.first_row; n < size.batch; ++n) sum += double{grad.at(n, row)} * x.at(n, col);
      return kept_at(row, col) ? sum : 0;
    });
  }

  LinearSize size;
  Corner x, weight, grad;
  int32_t* words;
};

// 3x3 with padding 1 on one image of 4x5 pixels, which is the last of many: its outputs in plain loops.
struct Images {
  static constexpr int64_t kIn = 4, kOut = 4, kHeight = 4, kWidth = 5, kPlane = kHeight * kWidth;
  static constexpr int64_t kBatch = kBig / (kIn * kPlane) + 7;

  Images() : weight(kOut, kIn * 9), images(kBatch * kIn, kPlane), words(weight.words()) {
    weight.fill();
    for (int64_t channel = 0; channel < kIn; ++channel) {
      for (int64_t i = 0; i < kPlane; ++i) last(images, channel, i) = value_at(channel * 91 + i);
    }
  }

  static float& last(const Corner& planes, int64_t channel, int64_t i) {
    return planes.at(planes.rows - kIn + channel, i);
  }

  // body(output channel, output pixel, input channel, input pixel, weight) over the kept slots.
  template <class Body>
  void each(const Body& body) const {
    for (int64_t o = 0; o < kOut; ++o) {
      for (int64_t slot = weight.first_col; slot < weight.cols; ++slot) {
        for (int64_t i = 0; i < kPlane && kept_at(o, slot); ++i) {
          const int64_t y = i / kWidth - 1 + slot % 9 / 3, x = i % kWidth - 1 + slot % 3;
          if (y < 0 || y >= kHeight || x < 0 || x >= kWidth) continue;
          body(o, i, slot / 9, y * kWidth + x, double{weight.at(o, slot)});
        }
      }
    }
  }

  bool forward() const {
    const Corner result(kBatch * kOut, kPlane);
    const float* no_bias = nullptr;
    masked_conv2d<kIsa>(images.values, dense(weight, words), no_bias, result.values, kSize, kLast);
    double expected[kOut][kPlane] = {};
    each([&](int64_t o, int64_t i, int64_t c, int64_t j, double w) {
      expected[o][i] += w * last(images, c, j);
    });
    return same(result, expected);
  }

  bool input_grad() const {
    const Corner result(kBatch * kIn, kPlane);
    masked_conv2d_input_grad<kIsa>(images.values, dense(weight, words), result.values, kSize, kLast);
    double expected[kIn][kPlane] = {};
    each([&](int64_t o, int64_t i, int64_t c, int64_t j, double w) {
      expected[c][j] += w * last(images, o, i);
    });
    return same(result, expected);
  }

  static bool same(const Corner& result, const double (&expected)[kIn][kPlane]) {
    bool good = true;
    for (int64_t channel = 0; channel < kIn; ++channel) {
      for (int64_t i = 0; i < kPlane; ++i) good &= expect(last(result, channel, i), expected[channel][i]);
    }
    return good;
  }

  static constexpr ConvSize kSize = {kBatch, kIn,    {kHeight, kWidth}, kOut,   {kHeight, kWidth},
                                     {3, 3}, {1, 1}, {1, 1},            {1, 1}, 1};
  Corner weight, images;
  int32_t* words;
};

// A weight of more than 2^31 slots: 1x1 images under a 3x3 kernel, of which the middle alone meets a pixel.
bool conv_weight_grad() {
  const int64_t in = 8192, out = kBig / (in * 9) + 9;
  const ConvSize size = {2, in, {1, 1}, out, {1, 1}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1};
  const Corner x(2, in), grad(2, out), dw(out, in * 9);
  x.fill(), grad.fill();
  masked_conv2d_weight_grad<kIsa>(grad.values, x.values, Weight<float>{dw.values, dw.words(), nullptr}, size, kLast);
  bool good = true;
  for (int64_t row = dw.first_row; row < out; ++row) {
    for (int64_t col = dw.first_col; col < dw.cols; ++col) {
      double sum = 0;
      for (int64_t n = 0; n < 2; ++n) sum += double{grad.at(n, row)} * x.at(n, col / 9);
      good &= expect(dw.at(row, col), col % 9 == 4 && kept_at(row, col) ? sum : 0);
    }
  }
  return good;
}

// More than 2^31 words.
constexpr int64_t kRows = 3, kCols = (int64_t{1} << 36) + 71;

bool pack() {
  uint8_t* mask = reserve<uint8_t>(kRows * kCols);
  for (int64_t i = 1; i <= 200; ++i) mask[kRows * kCols - i] = i % 7 == 0;
  int32_t* words = reserve<int32_t>(kRows * words_per_row(kCols));
  pack_mask<kIsa>(mask, kRows, kCols, words, kLast);
  bool good = true;
  for (int64_t i = 1; i <= 200; ++i) {
    const int64_t col = kCols - i;
    const int32_t word = words[(kRows - 1) * words_per_row(kCols) + col / 32];
    good &= expect(static_cast<uint32_t>(word) >> (col % 32) & 1, i % 7 == 0);
  }
  return good;
}

bool unpack() {
  int32_t* words = reserve<int32_t>(kRows * words_per_row(kCols));
  uint8_t* mask = reserve<uint8_t>(kRows * kCols);
  for (int64_t i = 0; i < 8; ++i) words[kRows * words_per_row(kCols) - 4 - i] = 0x12345678;
  unpack_mask<kIsa>(words, kRows, kCols, mask, kLast);
  bool good = true;
  for (int64_t i = 1; i <= 200; ++i) {
    const int64_t col = kCols - i;
    const int32_t word = words[(kRows - 1) * words_per_row(kCols) + col / 32];
    good &= expect(mask[kRows * kCols - i], static_cast<uint32_t>(word) >> (col % 32) & 1);
  }
  return good;
}

bool count() {
  const int64_t rows = kBig / 32 + 9, row_words = 64;
  int32_t* words = reserve<int32_t>(rows * row_words);
  int64_t* counts = reserve<int64_t>(rows);
  for (int64_t i = 1; i <= 70; ++i) words[rows * row_words - i] = 5;
  count_mask<kIsa>(words, rows, row_words, counts, kLast);
  return expect(counts[rows - 1], 128) & expect(counts[rows - 2], 12) & expect(counts[rows - 3], 0);
}

bool vectors(bool (Linear::*run)() const) {
  const Linear linear({8, 65536, 33000});
  linear.keep_first_rows();
  return (linear.*run)();
}

const std::map<std::string, std::function<bool()>> kCases = {
    {"pack", pack},
    {"unpack", unpack},
    {"count", count},
    {"linear by slots", [] { return Linear({8, 8, kBig / 8 + 5}).forward(); }},
    {"linear by vectors", [] { return vectors(&Linear::forward); }},
    {"linear of many samples", [] { return Linear({70000, 32768, 16}).forward(); }},
    {"linear to many outputs", [] { return Linear({70000, 8, 32768}).forward(); }},
    {"linear input_grad by slots", [] { return Linear({8, kBig / 8 + 70, 8}).input_grad(); }},
    {"linear input_grad by vectors", [] { return vectors(&Linear::input_grad); }},
    {"linear input_grad of a large weight", [] { return Linear({40, 65536, 33000}).input_grad(); }},
    {"linear input_grad of many samples", [] { return Linear({70000, 32768, 16}).input_grad(); }},
    {"linear weight_grad of one sample", [] { return Linear({1, 65536, 33000}).weight_grad(); }},
    {"linear weight_grad of a large weight", [] { return Linear({16, 65536, 33000}).weight_grad(); }},
    {"linear weight_grad of many samples", [] { return Linear({70000, 32768, 8}).weight_grad(); }},
    {"conv", [] { return Images().forward(); }},
    {"conv input_grad", [] { return Images().input_grad(); }},
    {"conv weight_grad", conv_weight_grad},
};

}  // namespace

int main(int argument_count, char** arguments) {
  bool good = true;
  for (const auto& [name, run] : kCases) {
    if (argument_count > 1 && name.rfind(arguments[1], 0) != 0) continue;
    std::fprintf(stderr, "case %s\n", name.c_str());
    good &= run();
  }
  return good ? 0 : 1;
}
