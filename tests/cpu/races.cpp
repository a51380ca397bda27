// Runs every CPU kernel on one thread and on four, and compares the results bit for bit. Compiled with
// ThreadSanitizer, which libgomp is not, so the threads are this program's own.
//
//     races [overlapping]
//
// "overlapping" breaks the contract of Parallel: ranges share an item with their neighbour. Then every kernel
// has a race, which the sanitizer must report between that kernel's name and the next. (Not the selection:
// what it counts twice would leave its arrays.)
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sparseprune/mask_bits.h>
#include <sparseprune/masked_conv2d.h>
#include <sparseprune/masked_linear.h>
#include <sparseprune/topk_mask.h>

namespace {

using namespace sparseprune;
constexpr Isa kIsa = Isa::SPARSEPRUNE_ISA;
constexpr int64_t kThreads = 4;

bool overlapping = false;
int64_t loops_cut = 0;
std::mt19937 random_bits;

// Overlapping ranges take turns, so that what they do to each other is the same at every run. A relaxed
// atomic orders nothing: to the sanitizer they run at once.
void run_threads(int64_t count, int64_t grain, Parallel::Body body, void* context) {
  const int64_t pieces = std::min(kThreads, (count + grain - 1) / grain);
  const int64_t size = (count + pieces - 1) / pieces;
  std::atomic<int64_t> turn{0};
  std::vector<std::thread> threads;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    threads.emplace_back([&, piece] {
      const int64_t begin = std::min(piece * size, count);
      const int64_t end = std::min(begin + size + (overlapping ? 1 : 0), count);
      while (overlapping && turn.load(std::memory_order_relaxed) != piece) {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
      if (begin < end) body(begin, end, context);
      turn.store(piece + 1, std::memory_order_relaxed);
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (pieces > 1) ++loops_cut;
}

const Parallel kOne = {1, [](int64_t count, int64_t, Parallel::Body body, void* context) {
                         body(0, count, context);
                       }};
const Parallel kFour = {kThreads, run_threads};

template <class T>
std::vector<T> normal(int64_t count) {
  std::normal_distribution<T> distribution;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = distribution(random_bits);
  return values;
}

std::vector<uint8_t> kept(int64_t count, double density) {
  std::bernoulli_distribution distribution(density);
  std::vector<uint8_t> mask(static_cast<size_t>(count));
  for (uint8_t& keep : mask) keep = distribution(random_bits);
  return mask;
}

std::vector<int32_t> words_of(const std::vector<uint8_t>& mask, int64_t rows, int64_t cols) {
  std::vector<int32_t> words(static_cast<size_t>(rows * words_per_row(cols)));
  for (int64_t i = 0; i < rows * cols; ++i) {
    const uint32_t bit = uint32_t{mask[static_cast<size_t>(i)]} << (i % cols % 32);
    words[static_cast<size_t>(i / cols * words_per_row(cols) + i % cols / 32)] |= static_cast<int32_t>(bit);
  }
  return words;
}

// run(result, parallel) writes all of a result of `count` elements.
template <class T, class Run>
bool check(const std::string& name, int64_t count, const Run& run) {
  std::fprintf(stderr, "kernel %s\n", name.c_str());
  std::vector<T> one(static_cast<size_t>(count)), four(one);
  const int64_t before = loops_cut;
  run(one.data(), kOne);
  run(four.data(), kFour);
  if (loops_cut == before) std::fprintf(stderr, "FAILED: nothing ran on several threads\n");
  const bool same = overlapping || std::memcmp(one.data(), four.data(), sizeof(T) * one.size()) == 0;
  if (!same) std::fprintf(stderr, "FAILED: four threads give another result than one\n");
  return same && loops_cut > before;
}

bool masks(int64_t rows, int64_t cols) {
  const std::vector<uint8_t> mask = kept(rows * cols, 0.5);
  const std::vector<int32_t> words = words_of(mask, rows, cols);
  const int64_t word_count = rows * words_per_row(cols);
  bool good = check<int32_t>("pack_mask", word_count, [&](int32_t* out, const Parallel& parallel) {
    pack_mask<kIsa>(mask.data(), rows, cols, out, parallel);
  });
  good &= check<uint8_t>("unpack_mask", rows * cols, [&](uint8_t* out, const Parallel& parallel) {
    unpack_mask<kIsa>(words.data(), rows, cols, out, parallel);
  });
  good &= check<int64_t>("count_mask", rows, [&](int64_t* out, const Parallel& parallel) {
    count_mask<kIsa>(words.data(), rows, words_per_row(cols), out, parallel);
  });
  return good;
}

// The weight dense, and packed: its first values are the survivors then.
template <class T>
struct Stored {
  Stored(T* values, const std::vector<int32_t>& words, int64_t rows) : start(rows + 1) {
    const int64_t row_words = static_cast<int64_t>(words.size()) / std::max(rows, int64_t{1});
    for (int64_t word = 0; word < rows * row_words; ++word) {
      start[word / row_words + 1] += __builtin_popcount(static_cast<uint32_t>(words[word]));
    }
    for (int64_t row = 0; row < rows; ++row) start[row + 1] += start[row];
    dense = {values, words.data(), nullptr};
    packed = {values, words.data(), start.data()};
  }
  std::vector<int64_t> start;
  Weight<T> dense, packed;
};

template <class T>
bool linear(const LinearSize& size, double density) {
  const auto x = normal<T>(size.batch * size.in), weight = normal<T>(size.out * size.in);
  const auto grad = normal<T>(size.batch * size.out), bias = normal<T>(size.out);
  const auto words = words_of(kept(size.out * size.in, density), size.out, size.in);
  const Stored<const T> stored(weight.data(), words, size.out);
  bool good = true;
  for (const auto& w : {stored.dense, stored.packed}) {
    good &= check<T>("masked_linear", size.batch * size.out, [&](T* y, const Parallel& parallel) {
      masked_linear<kIsa>(x.data(), w, bias.data(), y, size, parallel);
    });
    good &= check<T>("masked_linear_input_grad", size.batch * size.in, [&](T* dx, const Parallel& parallel) {
      masked_linear_input_grad<kIsa>(grad.data(), w, dx, size, parallel);
    });
    const int64_t count = w.packed() ? stored.start.back() : size.out * size.in;
    good &= check<T>("masked_linear_weight_grad", count, [&](T* dw, const Parallel& parallel) {
      masked_linear_weight_grad<kIsa>(grad.data(), x.data(), Weight<T>{dw, w.words, w.start}, size, parallel);
    });
  }
  return good;
}

template <class T>
bool conv(const ConvSize& size, double density) {
  const int64_t columns = size.in_channels / size.groups * size.kernel[0] * size.kernel[1];
  const int64_t x_count = size.batch * size.in_channels * size.input[0] * size.input[1];
  const int64_t y_count = size.batch * size.out_channels * size.output[0] * size.output[1];
  const int64_t weight_count = size.out_channels * columns;
  const auto x = normal<T>(x_count), weight = normal<T>(weight_count);
  const auto grad = normal<T>(y_count), bias = normal<T>(size.out_channels);
  const auto words = words_of(kept(weight_count, density), size.out_channels, columns);
  const Stored<const T> stored(weight.data(), words, size.out_channels);
  bool good = true;
  for (const auto& w : {stored.dense, stored.packed}) {
    good &= check<T>("masked_conv2d", y_count, [&](T* y, const Parallel& parallel) {
      masked_conv2d<kIsa>(x.data(), w, bias.data(), y, size, parallel);
    });
    good &= check<T>("masked_conv2d_input_grad", x_count, [&](T* dx, const Parallel& parallel) {
      masked_conv2d_input_grad<kIsa>(grad.data(), w, dx, size, parallel);
    });
    const int64_t count = w.packed() ? stored.start.back() : weight_count;
    good &= check<T>("masked_conv2d_weight_grad", count, [&](T* dw, const Parallel& parallel) {
      masked_conv2d_weight_grad<kIsa>(grad.data(), x.data(), Weight<T>{dw, w.words, w.start}, size, parallel);
    });
  }
  return good;
}

// Of |w g| over three tensors: of some slots, of all, and of a transposed matrix.
template <class T>
bool selection(int64_t rows, int64_t cols, int64_t k, bool largest) {
  const int64_t row_words = words_per_row(cols), size = rows * cols;
  auto weights = normal<T>(3 * size);
  for (T& weight : weights) weight = weight < 0 ? 0 : std::min(weight, T{1});  // ties at both ends
  const std::vector<T> gradients(weights.size(), T{1});
  const auto candidates = words_of(kept(size, 0.5), rows, cols);
  return check<int32_t>("topk_mask", 3 * rows * row_words, [&](int32_t* words, const Parallel& parallel) {
    ScoredTensor tensors[3];
    for (int64_t i = 0; i < 3; ++i) {
      const int dims = i == 2 ? 2 : 0;
      const Elements weight = {weights.data() + i * size, dims, {rows, cols}, {1, rows}};
      const Elements gradient = {gradients.data() + i * size, dims, {rows, cols}, {1, rows}};
      tensors[i] = {weight, gradient, sizeof(T) == 4 ? ScoreType::float32 : ScoreType::float64,
                    Formula::abs_w_g, i == 0 ? candidates.data() : nullptr, words + i * rows * row_words,
                    rows, cols};
    }
    int64_t counts[3];
    topk_mask<kIsa, T>(tensors, 3, k, largest, counts, parallel);
  });
}

template <class T>
bool layers() {
  bool good = true;
  // Batches of the small-batch path and of panels, densities of slots and of vectors.
  for (const int64_t batch : {3, 8, 9, 70}) {
    for (const double density : {0.02, 0.4}) good &= linear<T>({batch, 330, 95}, density);
  }
  good &= conv<T>({3, 5, {9, 8}, 26, {9, 8}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, 0.3);
  good &= conv<T>({2, 12, {15, 14}, 10, {7, 5}, {3, 5}, {2, 3}, {1, 2}, {1, 1}, 2}, 0.4);
  good &= conv<T>({2, 70, {6, 7}, 40, {6, 7}, {1, 1}, {1, 1}, {0, 0}, {1, 1}, 1}, 0.2);
  good &= conv<T>({2, 24, {7, 5}, 24, {7, 5}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 24}, 0.6);
  for (const int64_t k : {1, 200'000, 700'000}) good &= selection<T>(400, 1003, k, k > 1);
  return good;
}

}  // namespace

int main(int count, char** arguments) {
  bool good = true;
  if (count > 1 && std::strcmp(arguments[1], "overlapping") == 0) {
    overlapping = true;
    good &= masks(37, 1003);
    for (const int64_t batch : {3, 9}) good &= linear<float>({batch, 330, 95}, 0.4);
    good &= conv<float>({2, 26, {9, 8}, 26, {9, 8}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, 1}, 0.3);
  } else {
    good &= masks(37, 1003);
    good &= masks(3000, 130);
    good &= layers<float>();
    good &= layers<double>();
  }
  return good ? 0 : 1;
}
