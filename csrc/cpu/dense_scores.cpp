#include <sparseprune/dense_scores.h>

#include "scratch.h"
#include "simd.h"

namespace sparseprune {
namespace {

// A tile of sums is kTall rows (or positions) of kWide vectors of columns: as many as there are registers for, with the
// vectors that they are made of.
constexpr int kTall = 4;
constexpr int kWide = kVectorBytes == 64 ? 4 : 2;
// Rows that are passed over for the scores and then for the input's gradient: their columns of a panel stay in the first
// cache, and no sum of rounded values is longer.
constexpr int64_t kRows = 64;

constexpr int64_t kAhead = 8;  // rows that are asked for before their turn

template <class T>
constexpr int64_t kColumns = kWide * kLanes<T>;

// kWide vectors of which the first `valid` values are there.
template <class T>
inline void load_columns(const T* from, int64_t valid, Vec<T>* to) {
  if (valid >= kColumns<T>) {
    for (int c = 0; c < kWide; ++c) to[c] = load(from + c * kLanes<T>);
    return;
  }
  T padded[kColumns<T>] = {};
  std::memcpy(padded, from, static_cast<size_t>(valid) * sizeof(T));
  for (int c = 0; c < kWide; ++c) to[c] = load(padded + c * kLanes<T>);
}

// One panel of columns: x and x_grad as [width][kColumns].
template <class T>
class Panel {
 public:
  Panel(int64_t width, bool input)
      : width_(width), input_(input), x_(width * kColumns<T>), down_(input ? width * kColumns<T> : 0) {}

  void take(const T* x, int64_t valid) {
    valid_ = valid;
    for (int64_t u = 0; u < width_; ++u) {
      for (int64_t k = 0; k < kColumns<T>; ++k) x_[u * kColumns<T> + k] = k < valid ? x[k * width_ + u] : T{0};
    }
    if (input_) std::memset(down_.get(), 0, static_cast<size_t>(width_ * kColumns<T>) * sizeof(T));
  }

  // R rows of scores; the largest of what weights are multiplied with goes into `peak`.
  template <int R>
  void score(const T* weight, const T* grad, int64_t cols, T* scores, Vec<T>& peak) const {
    for (int r = 0; r < R; ++r) {  // rows lie too far apart for the hardware to follow
      for (int c = 0; c < kWide; ++c) {
        __builtin_prefetch(weight + (kAhead + r) * cols + c * kLanes<T>);
        __builtin_prefetch(scores + (kAhead + r) * cols + c * kLanes<T>, 1);
      }
    }
    Vec<T> sums[R][kWide] = {};
    for (int64_t u = 0; u < width_; ++u) {
      Vec<T> line[kWide];
      for (int c = 0; c < kWide; ++c) line[c] = load(x_.get() + u * kColumns<T> + c * kLanes<T>);
      for (int r = 0; r < R; ++r) {
        const Vec<T> g = splat(grad[r * width_ + u]);
        for (int c = 0; c < kWide; ++c) sums[r][c] += g * line[c];
      }
    }
    for (int r = 0; r < R; ++r) {
      Vec<T> w[kWide];
      load_columns(weight + r * cols, valid_, w);
      for (int c = 0; c < kWide; ++c) {
        peak = sums[r][c] > peak ? sums[r][c] : peak;
        w[c] *= sums[r][c];
      }
      if (valid_ >= kColumns<T>) {
        for (int c = 0; c < kWide; ++c) store(scores + r * cols + c * kLanes<T>, w[c]);
      } else {
        T padded[kColumns<T>];
        for (int c = 0; c < kWide; ++c) store(padded + c * kLanes<T>, w[c]);
        std::memcpy(scores + r * cols, padded, static_cast<size_t>(valid_) * sizeof(T));
      }
    }
  }

  // Adds what `rows` rows pass down, U positions at once.
  template <int U>
  void pass(const T* weight, const T* grad, int64_t cols, int64_t rows) {
    for (int64_t u = 0; u < width_; u += U) {
      Vec<T> sums[U][kWide] = {};
      for (int64_t row = 0; row < rows; ++row) {
        Vec<T> w[kWide];
        load_columns(weight + row * cols, valid_, w);
        for (int i = 0; i < U; ++i) {
          const Vec<T> g = splat(grad[row * width_ + u + i]);
          for (int c = 0; c < kWide; ++c) sums[i][c] += g * w[c];
        }
      }
      for (int i = 0; i < U; ++i) {
        T* to = down_.get() + (u + i) * kColumns<T>;
        for (int c = 0; c < kWide; ++c) store(to + c * kLanes<T>, load(to + c * kLanes<T>) + sums[i][c]);
      }
    }
  }

  void write(T* x_grad) const {
    for (int64_t k = 0; k < valid_; ++k)
      for (int64_t u = 0; u < width_; ++u) x_grad[k * width_ + u] = down_[u * kColumns<T> + k];
  }

 private:
  int64_t width_, valid_ = 0;
  bool input_;
  Scratch<T> x_, down_;
};

}  // namespace

template <Isa isa, class T>
T dense_scores(const T* weight, const T* grad, const T* x, int64_t height, int64_t cols, int64_t width, T* x_grad,
               T* scores, const Parallel& parallel) {
  const int64_t panels = ceil_div(cols, kColumns<T>);
  Scratch<T> peaks(panels);
  const int64_t grain = grain_of(kColumns<T> * height * max_of(width / 4, 1) * static_cast<int64_t>(sizeof(T)));
  for_ranges(parallel, panels, grain, [&](int64_t begin, int64_t end) {
    Panel<T> panel(width, x_grad != nullptr);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * kColumns<T>;
      panel.take(x + first * width, min_of(kColumns<T>, cols - first));
      Vec<T> peak{};
      for (int64_t from = 0; from < height; from += kRows) {
        const int64_t rows = min_of(kRows, height - from);
        const T *w = weight + from * cols + first, *g = grad + from * width;
        T* const to = scores + from * cols + first;
        int64_t row = 0;
        for (; row + kTall <= rows; row += kTall)
          panel.template score<kTall>(w + row * cols, g + row * width, cols, to + row * cols, peak);
        for (; row < rows; ++row)
          panel.template score<1>(w + row * cols, g + row * width, cols, to + row * cols, peak);
        if (x_grad == nullptr) continue;
        if (width % kTall == 0) {
          panel.template pass<kTall>(w, g, cols, rows);
        } else {
          panel.template pass<1>(w, g, cols, rows);
        }
      }
      if (x_grad != nullptr) panel.write(x_grad + first * width);
      peaks[i] = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) peaks[i] = peak[lane] > peaks[i] ? peak[lane] : peaks[i];
    }
  });
  T peak = 0;
  for (int64_t i = 0; i < panels; ++i) peak = peaks[i] > peak ? peaks[i] : peak;
  return peak;
}

template float dense_scores<Isa::SPARSEPRUNE_ISA>(const float*, const float*, const float*, int64_t, int64_t, int64_t,
                                                  float*, float*, const Parallel&);
template double dense_scores<Isa::SPARSEPRUNE_ISA>(const double*, const double*, const double*, int64_t, int64_t,
                                                   int64_t, double*, double*, const Parallel&);

}  // namespace sparseprune
