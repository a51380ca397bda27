// Groups of 2, 4 or 8 that fit a vector are ranked in registers, so that 2:4 is bound by reading the scores; other small
// groups are ranked key by key; in large ones the k-th key is found first, and the bits are a comparison with it.
#include <sparseprune/group_topk_mask.h>

#include "group_select.h"
#include "scratch.h"
#include "topk_compare.h"
#include "topk_values.h"

namespace sparseprune {
namespace {

constexpr int64_t kBlockSlots = 4096;

// Writes a row's bits in order, in whole words.
class BitWriter {
 public:
  BitWriter(int32_t* words, int64_t index64) : words_(words), index_(index64) {}
  // The lowest `count` bits, 1 to 64 of them; those above are zero.
  void put(uint64_t bits, int64_t count) {
    pending_ |= bits << filled_;
    filled_ += count;
    if (filled_ < 64) return;
    store_bits(words_, index_++, pending_);
    filled_ -= 64;
    pending_ = filled_ > 0 ? bits >> (count - filled_) : 0;
  }
  void finish() {
    if (filled_ > 0) store_bits(words_, index_, pending_);
  }

 private:
  int32_t* words_;
  int64_t index_;
  uint64_t pending_ = 0;
  int64_t filled_ = 0;
};

template <class T>
class GroupSelection {
 public:
  GroupSelection(const ScoredTensor& tensor, int64_t k, int64_t group, bool largest)
      : tensor_(tensor),
        k_(k),
        group_(group),
        largest_(largest),
        plain_(is_plain<T>(tensor, largest)),
        block_(64 * group * max_of(1, kBlockSlots / (64 * group))),
        row_blocks_(ceil_div(tensor.cols, block_)) {}

  int64_t run(const Parallel& parallel) {
    const int64_t grain = ceil_div(kGrainBytes, min_of(block_, tensor_.cols) * static_cast<int64_t>(sizeof(T)));
    for_ranges(parallel, tensor_.rows * row_blocks_, grain, [&](int64_t begin, int64_t end) {
      const ExactDenormals exact;
      const int64_t room = group_ > kSmallGroup ? group_ + 64 + 2 * kLanes<T> : 0;
      const Scratch<Key<T>> keys(room), spare(room);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = i / row_blocks_, first = i % row_blocks_ * block_;
        if (select(row, first, min_of(first + block_, tensor_.cols), keys.get(), spare.get())) report_nan(row);
      }
    });
    return nan_row_;
  }

 private:
  // The columns [begin, end) of a row, which begin at a word and at a group; whether one is NaN.
  bool select(int64_t row, int64_t begin, int64_t end, Key<T>* keys, Key<T>* spare) {
    if constexpr (kLanes<T> >= 2) {
      if (group_ == 2) return select_in_vectors<2>(row, begin, end);
    }
    if constexpr (kLanes<T> >= 4) {
      if (group_ == 4) return select_in_vectors<4>(row, begin, end);
    }
    if constexpr (kLanes<T> >= 8) {
      if (group_ == 8) return select_in_vectors<8>(row, begin, end);
    }
    return group_ <= kSmallGroup ? select_small(row, begin, end) : select_large(row, begin, end, keys, spare);
  }

  template <int G>
  bool select_in_vectors(int64_t row, int64_t begin, int64_t end) {
    bool nan = false;
    T values[64];
    for (int64_t column = begin; column < end; column += 64) {
      const int64_t valid = min_of(64, end - column);
      const T* scores = scores_of(row * tensor_.cols + column, valid, values);
      nan |= any_nan(scores);
      store_bits(tensor_.words, word_of(row, column), best_in_vectors<G>(scores, k_) & low_bits(valid));
    }
    return nan;
  }

  bool select_small(int64_t row, int64_t begin, int64_t end) {
    Key<T> keys[kBlockSlots + 64 + kLanes<T>];
    const bool nan = load_keys(row * tensor_.cols + begin, end - begin, keys);
    BitWriter writer(tensor_.words, word_of(row, begin));
    for (int64_t i = 0; i < end - begin; i += group_) writer.put(best_in_group<T>(keys + i, group_, k_), group_);
    writer.finish();
    return nan;
  }

  bool select_large(int64_t row, int64_t begin, int64_t end, Key<T>* keys, Key<T>* spare) {
    bool nan = false;
    BitWriter writer(tensor_.words, word_of(row, begin));
    for (int64_t column = begin; column < end && !nan; column += group_) {
      nan = load_keys(row * tensor_.cols + column, group_, keys);
      if (!nan) put_large(keys, spare, writer);
    }
    writer.finish();
    return nan;
  }

  void put_large(const Key<T>* keys, Key<T>* spare, BitWriter& writer) {
    const Key<T> least = k_ > 0 ? nth_largest<T>(keys, group_, k_, spare) : kInfinity<T> + 1;
    int64_t ties = k_ - count_above<T>(keys, group_, least);
    for (int64_t i = 0; i < group_; i += 64) {
      uint64_t above = 0, equal = 0;
      for (int lane = 0; lane < 64; lane += kLanes<T>) {
        const Vec<Key<T>> own = load(keys + i + lane);
        above |= lane_bits<T>(own > splat(least)) << lane;
        equal |= lane_bits<T>(own == splat(least)) << lane;
      }
      for (; equal != 0 && ties > 0; equal &= equal - 1, --ties) above |= equal & -equal;
      writer.put(above, min_of(64, group_ - i));
    }
  }

  // The keys of consecutive slots, up to 64 and a vector of padding behind them; whether a score is NaN.
  bool load_keys(int64_t index, int64_t count, Key<T>* keys) {
    bool nan = false;
    T values[64];
    for (int64_t i = 0; i < count; i += 64) {
      const T* scores = scores_of(index + i, min_of(64, count - i), values);
      nan |= any_nan(scores);
      for (int lane = 0; lane < 64; lane += kLanes<T>) store(keys + i + lane, keys_of(scores + lane));
    }
    for (int64_t i = count; i < ceil_div(count, 64) * 64 + kLanes<T>; ++i) keys[i] = kPadding<T>;
    return nan;
  }

  const T* scores_of(int64_t index, int64_t valid, T* values) {
    if (plain_ && valid == 64) return static_cast<const T*>(tensor_.weights.data) + index;
    values_of(tensor_, largest_, index, valid, values);
    return values;
  }

  int64_t word_of(int64_t row, int64_t column) const { return row * ceil_div(tensor_.cols, 64) + column / 64; }

  void report_nan(int64_t row) {
    uint64_t seen = __atomic_load_n(&nan_row_, __ATOMIC_RELAXED);  // -1 is above every row
    while (static_cast<uint64_t>(row) < seen && !__atomic_compare_exchange_n(&nan_row_, &seen, static_cast<uint64_t>(row),
                                                                             true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  const ScoredTensor& tensor_;
  int64_t k_;
  int64_t group_;
  bool largest_;
  bool plain_;
  int64_t block_;
  int64_t row_blocks_;
  uint64_t nan_row_ = ~uint64_t{0};
};

}  // namespace

template <Isa isa, class T>
int64_t group_topk_mask(const ScoredTensor& tensor, int64_t k, int64_t group, bool largest, const Parallel& parallel) {
  if (tensor.rows == 0 || tensor.cols == 0) return -1;
  return static_cast<int64_t>(GroupSelection<T>(tensor, k, group, largest).run(parallel));
}

template int64_t group_topk_mask<Isa::SPARSEPRUNE_ISA, float>(const ScoredTensor&, int64_t, int64_t, bool,
                                                              const Parallel&);
template int64_t group_topk_mask<Isa::SPARSEPRUNE_ISA, double>(const ScoredTensor&, int64_t, int64_t, bool,
                                                               const Parallel&);

}  // namespace sparseprune
